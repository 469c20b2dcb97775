"""Points whose rows a report kept as CSV: they need not be run again, wherever their runs have gone."""

import csv
from pathlib import Path

from imagen.errors import UserError


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a report's table. Raises: UserError if there is none, or it is no such table."""
    if not path.is_file():
        raise UserError(f"finished={path} does not exist: give the table.csv of a report, or null")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"variant", "seed", "run"} <= set(rows[0]):
        raise UserError(f"finished={path} is no table of a report: its columns lack variant, seed and run")
    return rows


def finished_points(path: Path) -> set[tuple[str, str]]:
    """The variant and the run folder's name of every point that has rows."""
    return {(row["variant"], row["run"]) for row in read_rows(path)}
