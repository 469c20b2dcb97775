"""The same prompts and seeds across a sweep's variants, as pictures in a grid."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen.ablation.study import Study
from imagen.ablation.table import Row
from imagen.errors import UserError
from imagen.image_grid import image_grid
from imagen.metric.pictures import read_picture
from imagen.report.directions import Directions, directions_of
from imagen.report.lines import along, at_of, grouped, lines_of, pair_of
from imagen.report.measured import Measured

PROMPTS = 8


@dataclass(frozen=True)
class Sheet:
    """A row a line of the figure, a column a prompt; ``at`` is the value of the axis, '' where there is none.

    Of a line that is alone a row is a point of it.
    """

    at: str
    picture: Image.Image
    seed: int
    sampling_seed: int
    prompts: list[str]
    labels: list[str]


def sheets_of(study: Study, measured: Sequence[Measured]) -> tuple[list[Sheet], list[str]]:
    """A sheet for each value of the axis, the best first; and a sentence on each gallery that cannot be shown.

    All are of one training seed: that of which most variants are there, the first of several. Best is where the
    figure's y is, as a mean over all variants, so that no variant is favoured; where it is not known which way is
    better, they are in the axis' own order.
    """
    if not measured:
        return [], []
    trained = [one.point.seed for one in measured]
    seed = max(sorted(set(trained)), key=trained.count)
    own = [one for one in measured if one.point.seed == seed]
    folders = {id(row): (one.folder(row), one.point.evaluation / "report.json") for one in own for row in one.rows}
    rows = [row for one in own for row in one.rows]
    sheets: list[Sheet] = []
    unseen: list[str] = []
    order = _best_first(study, [row for one in measured for row in one.rows], directions_of(measured))
    for at, shown in _shown(study, rows, order).items():
        galleries = {}
        for label, row in shown.items():
            folder, report = folders[id(row)]
            found = _gallery(folder / "shown", label)
            if isinstance(found, str):
                unseen.append(f"{found}: delete that folder and {report}, and the sweep's command draws them again")
            elif found["pictures"]:
                galleries[label] = found
        if galleries:
            sheets.append(_sheet(study, at, seed, galleries))
    return sheets, unseen


def _shown(study: Study, rows: Sequence[Row], order: Sequence[str]) -> dict[str, dict[str, Row]]:
    """What is below each other: at each value of the axis all lines, or of a line that is alone all values."""
    if len(grouped(study, rows)) == 1 and along(study):
        name = along(study).rpartition(".")[2]
        return {"": {f"{name} {at_of(study, row)}": row for row in rows}}
    lines = {at: grouped(study, [row for row in rows if at_of(study, row) == at]) for at in order}
    return {at: {label: row for label, (row, *_) in some.items()} for at, some in lines.items()}


def _best_first(study: Study, rows: Sequence[Row], directions: Directions) -> list[str]:
    """The values of the axis."""
    pair = pair_of(study, rows)
    order = list(dict.fromkeys(at_of(study, row) for row in rows))
    if pair is None or pair[1] not in directions:
        return order
    marks = [mark for line in lines_of(study, rows, *pair) for mark in line.marks]
    means = {at: float(np.mean([mark.y.mean for mark in marks if mark.at == at] or [np.nan])) for at in order}
    return sorted(order, key=lambda at: -means[at] if directions[pair[1]] == "higher" else means[at])


def _gallery(folder: Path, label: str) -> dict[str, Any] | str:
    """What ``samples.json`` says, with its pictures by file and prompt; or why they cannot be shown."""
    try:
        said = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        files = {(one["file"], one["prompt"]): folder / one["file"] for one in said["pictures"]}
        return {"seed": int(said["seed"]), "pictures": {key: read_picture(path) for key, path in files.items()}}
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        return f"the pictures of {label} in {folder} cannot be shown ({error})"


def _sheet(study: Study, at: str, seed: int, galleries: dict[str, dict[str, Any]]) -> Sheet:
    """Prompts that all galleries have; those drawn with another sampling seed than the first are left out."""
    first = next(iter(galleries.values()))
    alike = {label: one["pictures"] for label, one in galleries.items() if one["seed"] == first["seed"]}
    shared = [key for key in first["pictures"] if all(key in pictures for pictures in alike.values())]
    if not shared:  # of other prompts each: the first alone
        label = next(iter(alike))
        alike, shared = {label: alike[label]}, list(alike[label])
    keys = [shared[i] for i in np.linspace(0, len(shared) - 1, min(PROMPTS, len(shared))).round().astype(int)]
    prompts = [prompt for _, prompt in keys]
    shown = [[pictures[key] for key in keys] for pictures in alike.values()]
    where = [f"{along(study).rpartition('.')[2]} {at}"] if at else []
    title = ", ".join([study.full_name, *where, f"trained with seed {seed}, drawn with seed {first['seed']}"])
    picture = image_grid(shown, prompts, list(alike), cell=112, title=title)
    return Sheet(at, picture, seed, first["seed"], prompts, list(alike))
