"""What sweeps have shown so far, as a page of the documentation: python -m imagen.report.book [output_dir=outputs].

Of every report in ``<output_dir>/ablations`` table, verdict and figure are copied into ``docs/ablations``, where rows
wait for ``finished=``; ``docs/ablations.md`` is written anew between its marks from all that lie there.
"""

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
KEPT = {"table.csv": ".csv", "verdict.json": ".json", "figure.png": ".png"}
"""A report's files, and what they are called beside the page, after the sweep's name."""


def write_book(reports: Path, page: Path) -> list[str]:
    """Copy what ``reports`` holds beside ``page``, write the page's part, and return the sweeps that it tells of.

    Raises: UserError if there is no report at all, or the page has lost its marks.
    """
    kept = page.with_suffix("")
    make_folder(kept, "docs/ablations")
    for folder in sorted(path.parent for path in reports.glob("*/verdict.json")):
        for name, suffix in KEPT.items():
            if (folder / name).is_file():
                with atomic_write(kept / f"{folder.name}{suffix}") as temporary:
                    shutil.copyfile(folder / name, temporary)
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
