"""Rows as lines: of each variant the mean over seeds of two figures along an axis of sampling."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagen.ablation.study import ALONE, Study
from imagen.ablation.table import Row
from imagen.evaluation.table import PAIR
from imagen.report.directions import Directions
from imagen.report.measured import Measured

TIME = "seconds"


@dataclass(frozen=True)
class Spread:
    """A mean over ``n`` seeds, with the least and the greatest."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Mark:
    """Where a line passes: ``at`` is the value of the axis, '' where there is none."""

    at: str
    x: Spread
    y: Spread


@dataclass(frozen=True)
class Line:
    """One variant, at one value of all other axes than the one it runs along."""

    variant: str
    label: str
    marks: list[Mark]


def spread(values: Sequence[float | int]) -> Spread:
    mean = statistics.mean(map(float, values))  # exact, then rounded once: never beyond the least or the greatest
    return Spread(mean, float(np.min(values)), float(np.max(values)), len(values))


def pair_of(study: Study, rows: Sequence[Row]) -> tuple[str, str] | None:
    """The figures that are drawn, x and y: what the study asks for, or where that is missing what stands in for it."""
    found = []
    for name in (study.plot["x"], study.plot["y"]):
        family = next((names for names in PAIR if name in names), ())
        found.append(next((one for one in (name, *family) if any(one in row for row in rows)), None))
    return (found[0], found[1]) if found[0] and found[1] else None


def along(study: Study) -> str:
    """The axis of sampling that lines run along: the one that is drawn, else the first; '' where there is none."""
    x = study.plot["x"]
    return x if x in study.axes else next(iter(study.axes), "")


def lines_of(study: Study, rows: Sequence[Row], x: str, y: str) -> list[Line]:
    """The lines of rows that have both figures, in the study's order."""
    lines = []
    for label, own in grouped(study, [row for row in rows if x in row and y in row]).items():
        marks: dict[str, list[Row]] = {}
        for row in own:
            marks.setdefault(at_of(study, row), []).append(row)
        points = [
            Mark(at, spread([row[x] for row in some]), spread([row[y] for row in some])) for at, some in marks.items()
        ]
        lines.append(Line(own[0]["variant"], label, points))
    return lines


def grouped(study: Study, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each line by its label, in the order of the study."""
    order = {variant: i for i, variant in enumerate(study.variants)}
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: order[row["variant"]]):  # stable: sampling points stay as they were crossed
        found.setdefault(label_of(study, row), []).append(row)
    return found


def label_of(study: Study, row: Row) -> str:
    """What a row's line is called: its variant, and what is set on all other axes than the one it runs along."""
    others = [f"{axis.rpartition('.')[2]} {row[axis]}" for axis in study.axes if axis != along(study)]
    variant = [] if row["variant"] == ALONE and others else [row["variant"]]
    return ", ".join([*variant, *others])


def at_of(study: Study, row: Row) -> str:
    """Where on its line a row is; '' where there is no axis."""
    return str(row.get(along(study), ""))


def curves_of(study: Study, measured: Sequence[Measured], name: str) -> list[Line]:
    """A figure that was logged in training against the time spent until then: of each variant the mean over seeds.

    Only runs that are here have it.
    """
    by_variant: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for one in measured:
        per_step = one.rows[0][TIME] / one.rows[0]["steps"]
        for step, value in _logged(one, name):
            by_variant.setdefault(one.point.variant, {}).setdefault(step, []).append((step * per_step, value))
    return [
        Line(
            variant,
            variant,
            [
                Mark("", spread([seconds for seconds, _ in pairs]), spread([value for _, value in pairs]))
                for _, pairs in sorted(by_variant[variant].items())
            ],
        )
        for variant in study.variants
        if variant in by_variant
    ]


def _logged(one: Measured, name: str) -> Iterator[tuple[int, float]]:
    path = one.point.run.metrics
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        if row["name"] == name:
            yield row["step"], row["value"]


def pareto(lines: Sequence[Line], x: str, y: str, directions: Directions) -> list[Mark]:
    """The marks than which none is better in one figure and at least as good in the other, in the order of x.

    None where it is not known which way either figure is better.
    """
    if not {x, y} <= set(directions):
        return []
    marks = [mark for line in lines for mark in line.marks]
    signs = np.array([1 if directions[name] == "higher" else -1 for name in (x, y)])
    at = np.array([[mark.x.mean, mark.y.mean] for mark in marks]) * signs
    best = [
        mark
        for mark, own in zip(marks, at, strict=True)
        if not ((at >= own).all(axis=1) & (at > own).any(axis=1)).any()
    ]
    return sorted(best, key=lambda mark: (mark.x.mean, mark.y.mean))
