"""Several raters' files into the paper's chart: how often either model is preferred, by kind of prompt."""

import importlib.util
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from imagen.errors import UserError
from imagen.files import atomic_write, make_folder, write_json
from imagen.human_eval.figure import save_figure
from imagen.human_eval.ratings import Rater, Ratings, files_in, latest, namesakes, raters, read_ratings
from imagen.human_eval.table import ALL, Row, as_csv, table
from imagen.human_eval.trials import Truth

log = logging.getLogger(__name__)


def write_report(cfg: DictConfig, study: Path, paths: Sequence[Path]) -> Path:
    """Write ``preferences.csv``, ``.png``, ``.svg`` and, last, ``report.json``; return their folder.

    Files that are not this study's are left out with a warning each.
    Raises: UserError without a key, without an answer, where no rater is attentive, or a package is missing.
    """
    if missing := [name for name in ("matplotlib", "scipy") if importlib.util.find_spec(name) is None]:
        raise UserError(f"the report needs {' and '.join(missing)}: pip install 'imagen-lab[report]'")
    least = float(cfg.min_controls_right)
    if not 0 <= least <= 1:
        raise UserError(f"min_controls_right={least} must be from 0 to 1")
    key, truths = _read_key(study)
    files = _read_all(paths, key["study"], truths)
    answers, notes = latest(files), [_said_twice(name, trials) for name, trials in namesakes(files).items()]
    for note in notes:
        log.warning("%s", note)
    if not any(truth.right_answer for truth in truths.values()):
        least = 0.0  # the study has nothing to tell raters apart by
    everyone = raters(answers, truths)
    kept = {rater.name for rater in everyone if rater.attentive(least)}
    for rater in everyone:
        if rater.name not in kept:
            log.warning("%s is left out: %s, fewer than %.0f %%", rater.name, _told(rater), 100 * least)
    if not kept:
        raise UserError(
            f"no rater has {least:.0%} of the control trials right: lower min_controls_right, or ask others"
        )
    rows = table([one for one in answers if one.rater in kept], truths)
    if not rows:
        raise UserError("there are no answers but to control trials: ask raters to go on")
    folder = Path(cfg.output_dir or study / "report")
    make_folder(folder, "output_dir")
    names = {model: key[model]["name"] for model in ("a", "b")}
    with atomic_write(folder / "preferences.csv") as temporary:
        temporary.write_text(as_csv(rows), encoding="utf-8")
    save_figure(rows, names, folder)
    told = {
        "study": key["study"],
        "a": key["a"],
        "b": key["b"],
        "min_controls_right": least,
        "interval": "95 %, Wilson with the effective number of answers, clustered by rater",
        "raters": [asdict(rater) | {"kept": rater.name in kept} for rater in everyone],
        "notes": notes,
        "rows": [asdict(row) | {"preferred": row.preferred} for row in rows],
    }
    write_json(folder / "report.json", _plain(told))
    for row in rows:
        if row.kind == ALL:
            print(_in_words(row, names))
    print(f"{len(kept)} of {len(everyone)} raters; the chart and the tables are in {folder}")
    return folder


def _read_key(study: Path) -> tuple[dict[str, Any], dict[str, Truth]]:
    try:
        key = json.loads((study / "key.json").read_text(encoding="utf-8"))
        _ = key["study"], key["a"]["name"], key["b"]["name"]
        return key, {identity: Truth(**truth) for identity, truth in key["trials"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{study} has no key.json that can be read: give the folder of a study") from error


def _read_all(paths: Sequence[Path], study: str, truths: dict[str, Truth]) -> list[Ratings]:
    read: list[Ratings] = []
    for file in files_in(paths):
        try:
            ratings = read_ratings(file, study, truths)
        except ValueError as error:
            log.warning("%s %s; it is left out", file, error)
            continue
        read.append(ratings)
        if ratings.faults:
            log.warning("%s %s; %d answers are left out", file, ratings.faults[0], len(ratings.faults))
    if not any(ratings.answers for ratings in read):
        raise UserError(f"there is not one answer in {', '.join(map(str, paths))}: give the files that raters saved")
    return read


def _said_twice(name: str, trials: int) -> str:
    return (
        f"{name} answers {trials} trials in two ways, in files begun at different times: the file saved last counts; "
        "if they are of two people, give one of them another name as rater in the file"
    )


def _told(rater: Rater) -> str:
    return f"{rater.controls_right} of {rater.controls} answers to control trials are right"


def _in_words(row: Row, names: dict[str, str]) -> str:
    told = [f"{names.get(model, model)} {getattr(row, model).value:.1%}" for model in ("a", "b", "indifferent")]
    verdict = f"{names[row.preferred]} is preferred" if row.preferred in names else "undecided"
    return f"{row.question}: {', '.join(told)} of {row.answers} answers by {row.raters} raters: {verdict}"


def _plain(value: Any) -> Any:
    """With null where a share is of no answers: NaN is not JSON."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
