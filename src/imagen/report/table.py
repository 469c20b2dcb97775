"""The table of a sweep: its columns, how it is written, and how its cells are read again."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen.ablation.study import Study
from imagen.files import atomic_write

Row = dict[str, Any]
"""One variant, seed and point of sampling, by the columns' names."""

WHO = ("ablation", "scale", "variant", "seed", "run")
TIMES = ("seconds", "seconds_per_step")
COST = ("parameters", *TIMES, "steps")
MACHINE = "machine"
"""That of the training, on which its seconds depend."""

SAMPLING_SEED = "sampling_seed"

MEASURED = (MACHINE, "drawn", "real", SAMPLING_SEED)
"""Between ``WHO`` and ``COST`` stand the axes of sampling, after ``MEASURED`` the figures."""

WHOLE = ("seed", "parameters", "steps", "drawn", "real", SAMPLING_SEED)

Place = tuple[Any, ...]
"""A variant and the values of all axes of sampling."""


def place_of(study: Study, row: Row) -> Place:
    """Where in its sweep a row is, whatever its seed."""
    return (row["variant"], *(row[axis] for axis in study.axes))


def identity(row: Row) -> tuple[str, int, str]:
    """The training that a row is of: its variant, its seed and its run folder's name."""
    return row["variant"], row["seed"], row["run"]


def columns_of(study: Study, rows: Sequence[Row]) -> list[str]:
    """All columns in their order."""
    return [*WHO, *study.axes, *COST, *MEASURED, *figures_of(study, rows)]


def figures_of(study: Study, rows: Sequence[Row]) -> list[str]:
    """The figures that any row has."""
    fixed = {*WHO, *study.axes, *COST, *MEASURED}
    return [name for name in dict.fromkeys(name for row in rows for name in row) if name not in fixed]


def write_rows(study: Study, rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV; what a row lacks is an empty cell."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns_of(study, rows), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def from_cells(cells: dict[str, str], study: Study) -> Row:
    """A row of such a CSV. Raises: ValueError saying what it has that the study has not, or lacks."""
    row: Row = {}
    for name, cell in cells.items():
        if cell:
            try:
                row[name] = _value(name, cell, study)
            except (KeyError, ValueError) as error:
                raise ValueError(f"has {name}={cell}, which is none of {study.full_name}") from error
    if lacking := [name for name in (*WHO, *study.axes) if name not in row]:
        raise ValueError(f"has no {lacking[0]}, which {study.full_name} has")
    return row


def _value(name: str, cell: str, study: Study) -> Any:
    if name in study.axes:
        return {str(value): value for value in study.axes[name]}[cell]
    if name in WHOLE:
        return int(cell)
    return cell if name in (*WHO, MACHINE) else float(cell)
