"""What sweeps have shown so far, as a page of the documentation: python -m imagen.report.book [output_dir=outputs].

Of every report in ``<output_dir>/ablations`` table, verdict and figure are copied into ``docs/ablations``, where rows
wait for ``finished=``; ``docs/ablations.md`` is written anew between its marks from all that lie there.
"""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from imagen.cli import CONF, one_sentence
from imagen.errors import UserError
from imagen.files import atomic_write, make_folder

PAGE = CONF.parent / "docs" / "ablations.md"
BEGIN, END = "<!-- begin: python -m imagen.report.book -->", "<!-- end -->"
POINT = ("variant", "seed", "run", "evaluation")
KEPT = {"table.csv": ".csv", "verdict.json": ".json", "figure.png": ".png"}
"""A report's files, and what they are called beside the page, after the sweep's name."""


def write_book(reports: Path, page: Path) -> list[str]:
    """Copy what ``reports`` holds beside ``page``, write the page's part, and return the sweeps that it tells of.

    Raises: UserError if there is no report at all, the page has lost its marks, or a report lacks points that are kept.
    """
    kept = page.with_suffix("")
    make_folder(kept, "docs/ablations")
    folders = sorted(path.parent for path in reports.glob("*/verdict.json"))
    for folder in folders:
        _check_none_lost(folder / "table.csv", kept / f"{folder.name}.csv")
    for folder in folders:
        for name, suffix in KEPT.items():
            _keep(folder / name, kept / f"{folder.name}{suffix}")
    told = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(kept.glob("*.json"))}
    if not told:
        raise UserError(f"{reports} holds no report: python -m imagen.report ablation=... scale=... writes one")
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise UserError(f"{page} lacks its marks {BEGIN} and {END}: put them where the sweeps are to be told of")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    parts = [_overview(told), *(_of(name, one, kept) for name, one in told.items())]
    with atomic_write(page) as temporary:
        temporary.write_text("\n\n".join([before + BEGIN, *parts, END + after]), encoding="utf-8")
    return list(told)


def _check_none_lost(new: Path, kept: Path) -> None:
    """Raises: UserError if a kept table has points that the new one lacks: its report was of a part of the sweep."""
    if lost := sorted(_points(kept) - _points(new)):
        variant, seed, run, evaluation = lost[0]
        raise UserError(
            f"{new} lacks {variant}-s{seed} of {kept}, the run {run} measured as {evaluation}: report the whole sweep "
            f"with finished={kept}, or delete that file to begin anew"
        )


def _points(path: Path) -> set[tuple[str, ...]]:
    if not path.is_file():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {tuple(row.get(name) or "" for name in POINT) for row in csv.DictReader(file)}


def _keep(new: Path, kept: Path) -> None:
    """Copy a file of a report; what it lacks is not kept from an earlier one."""
    if new.is_file():
        with atomic_write(kept) as temporary:
            shutil.copyfile(new, temporary)
    else:
        kept.unlink(missing_ok=True)


def _overview(told: dict[str, dict[str, Any]]) -> str:
    lines = ["| sweep | the paper's | claim | here |", "|---|---|---|---|"]
    for name, one in told.items():
        lines.append(f"| [{name}](#{name}) | {one['paper']} | {one['claim']} | {one['verdicts'][0]['sentence']} |")
    return "\n".join(lines)


def _of(name: str, one: dict[str, Any], kept: Path) -> str:
    first, *others = (verdict["sentence"] for verdict in one["verdicts"])
    lines = [f"### {name}", f"{one['claim'][0].upper()}{one['claim'][1:]} ({one['paper']}). {_sentence(first)}"]
    lines += [f"Also: {_sentence(said)}" for said in others]
    if (kept / f"{name}.png").is_file():
        lines.append(f"![{name}]({kept.name}/{name}.png)")
    missing = f"; {len(one['missing'])} points are missing" * bool(one["missing"])
    lines.append(f"`{one['command']}` ({one['rows']} rows: [{name}.csv]({kept.name}/{name}.csv){missing})")
    return "\n\n".join(lines)


def _sentence(said: str) -> str:
    return said if said.endswith(".") else f"{said}."


def main() -> None:
    """Write the page, and say of what."""
    with one_sentence("train"):
        given = [argument.removeprefix("output_dir=") for argument in sys.argv[1:]]
        told = write_book(Path(given[-1] if given else "outputs") / "ablations", PAGE)
        print(f"{PAGE}: {', '.join(told)}")


if __name__ == "__main__":
    main()
