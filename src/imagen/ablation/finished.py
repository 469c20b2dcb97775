"""Points whose rows a report kept as CSV: they need not be run again, wherever their runs have gone."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagen.ablation.study import Study
from imagen.ablation.table import Row, key_of, read_rows
from imagen.errors import UserError


@dataclass(frozen=True)
class Finished:
    """``points`` are those that a table has whole, their rows by ``Point.key``; ``halves`` a sentence on each other."""

    points: dict[str, list[Row]]
    halves: list[str]


def read_finished(study: Study, path: Path | None) -> Finished:
    """The study's points that a table has, none without one; whole is a point with a row at all values of the axes.

    Raises: UserError if it is no such table, is damaged, is of other axes, or has two rows of one point of sampling.
    """
    by_point: dict[str, dict[tuple[Any, ...], Row]] = {}
    for row in read_rows(study, path) if path else ():
        own, values = by_point.setdefault(key_of(row), {}), tuple(row[axis] for axis in study.axes)
        if values in own:
            raise UserError(f"finished={path} has two rows of {_name(row)} at {_said(study, values)}: leave one")
        own[values] = row
    wanted = list(itertools.product(*study.axes.values()))
    points: dict[str, list[Row]] = {}
    halves: list[str] = []
    for key, own in by_point.items():
        if lacking := [values for values in wanted if values not in own]:
            halves.append(f"rows of {_name(next(iter(own.values())))} in {path} lack {_said(study, lacking[0])}")
        else:
            points[key] = [own[values] for values in wanted]
    return Finished(points, halves)


def _name(row: Row) -> str:
    return f"{row['variant']}-s{row['seed']}"


def _said(study: Study, values: Iterable[Any]) -> str:
    """A point of sampling."""
    return ", ".join(f"{axis}={value}" for axis, value in zip(study.axes, values, strict=True)) or "its one point"
