"""The table of a sweep: its columns, how it is written, and how its cells are read again."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from imagen.ablation.study import Study
from imagen.errors import UserError
from imagen.files import atomic_write

Row = dict[str, Any]
"""One variant, seed and point of sampling, by the columns' names."""

WHO = ("ablation", "scale", "variant", "seed", "run", "evaluation")
"""The point; ``run`` and ``evaluation`` are the names of its folders."""

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


def key_of(row: Row) -> str:
    """``Point.key`` of the training and measuring that a row is of."""
    return f"{row['variant']}-{row['run']}-{row['evaluation']}"


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


def read_rows(study: Study, path: Path) -> list[Row]:
    """The rows of the study in such a CSV.

    Raises: UserError if there is none, it is no such table or a damaged one, or is of another ablation or other axes.
    """
    if not path.is_file():
        raise UserError(f"finished={path} does not exist: give the table.csv of a report, or null")
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file, strict=True)
        try:
            return list(_rows_of(study, path, lines))
        except UserError:
            raise
        except (ValueError, csv.Error) as error:
            damaged = f"finished={path} is damaged in line {lines.line_num}"
            raise UserError(f"{damaged} ({error}): give a whole one, or null") from error


def _rows_of(study: Study, path: Path, lines: Iterator[list[str]]) -> Iterator[Row]:
    columns = next(lines, [])
    if (*columns[: len(WHO)],) != WHO or COST[0] not in columns:
        raise UserError(f"finished={path} is no table of a report, whose columns begin with {', '.join(WHO)}")
    axes = columns[len(WHO) : columns.index(COST[0])]
    of = set[str]()
    for cells in filter(None, lines):
        if len(cells) != len(columns):
            raise ValueError(f"{len(cells)} cells for {len(columns)} columns")
        named = dict(zip(columns, cells, strict=True))
        name = f"{named['ablation']}-{named['scale']}"
        of.add(name)
        if name == study.full_name:
            if {*axes} != {*study.axes}:
                there, wanted = (", ".join(some) or "no axes" for some in (axes, study.axes))
                raise UserError(f"finished={path} is of {there}, and {study.full_name} of {wanted}: leave it out")
            yield {name: _value(name, cell, study) for name, cell in named.items() if cell or name in (*WHO, *axes)}
    if of and study.full_name not in of:
        raise UserError(f"finished={path} has rows of {', '.join(sorted(of))} alone, none of {study.full_name}")


def _value(name: str, cell: str, study: Study) -> Any:
    if name in study.axes:
        return {str(value): value for value in study.axes[name]}.get(cell, cell)
    if name in WHOLE:
        return int(cell)
    return cell if name in (*WHO, MACHINE) else float(cell)
