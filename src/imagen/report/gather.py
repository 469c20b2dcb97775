"""A sweep's finished points as rows: what was set, what training cost, every figure; and which points are missing."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imagen.ablation.asked import OF_THE_REPORT, Asked
from imagen.ablation.failures import failures
from imagen.ablation.finished import read_rows
from imagen.ablation.study import Point, Study
from imagen.errors import UserError
from imagen.report.measured import Measured, read_measured
from imagen.report.missing import Missing, why_missing
from imagen.report.strays import strays_of
from imagen.report.table import Row, from_cells, identity


@dataclass(frozen=True)
class Sweep:
    """What there is of a sweep: a row a variant, seed and point of sampling.

    ``measured`` are the points whose runs are here, ``missing`` those that give no rows, ``strays`` what else was
    measured for the study, under other settings, a sentence each. ``command`` starts the sweep again.
    """

    study: Study
    folder: Path
    rows: list[Row]
    measured: list[Measured]
    missing: list[Missing]
    strays: list[str]
    seeds: list[int]
    command: str
    finished: Path | None = None
    others: list[str] = field(default_factory=list)
    """What else the sweep was told on its command line."""


def gather(arguments: Sequence[str]) -> Sweep:
    """Read what there is of the sweep that ``arguments`` start, the same as those of ``train.py -m``.

    Raises: UserError if the ablation or the scale is none, or not one point is there.
    """
    asked = Asked.of(arguments, OF_THE_REPORT)
    study, finished = asked.study, asked.finished
    order = list(study.variants)  # of the table; that of the sweep goes through the seeds first
    points = sorted(asked.points(), key=lambda point: order.index(point.variant))
    folder = study.folder(points[0].cfg.output_dir)
    kept, strays = _kept(study, finished)
    failed = failures(folder)
    rows: list[Row] = []
    missing: list[Missing] = []
    measured: list[Measured] = []
    for point in points:
        found = read_measured(study, point)
        if isinstance(found, Measured):
            rows += found.rows
            measured.append(found)
        elif point_rows := [row for row in kept if identity(row) == (point.variant, point.seed, point.run.path.name)]:
            rows += point_rows
        else:
            missing.append(why_missing(point, found, failed.get(point.key), _command(asked, point)))
    if not rows:
        first = missing[0]
        raise UserError(
            f"{study.full_name} has not one finished point of {len(points)} in {points[0].cfg.output_dir}: "
            f"{first.name}: {first.why}; start it with `{_command(asked)}`"
        )
    strays += [*strays_of(study, points), *_unused(kept, rows, finished)]
    trained = sorted({point.seed for point in points})
    return Sweep(study, folder, rows, measured, missing, strays, trained, _command(asked), finished, asked.own)


def read_sweep(
    ablation: str,
    scale: str,
    *,
    seeds: int = 1,
    overrides: Sequence[str] = (),
    finished: str | Path | None = None,
) -> list[Row]:
    """The rows of a sweep's finished points, for notebooks: a dict a variant, seed and point of sampling.

    ``overrides`` are those that the sweep was started with (``output_dir=...``), ``finished`` a report's table.csv.
    Raises: as ``gather``.
    """
    own = [] if finished is None else [f"finished={finished}"]
    return gather([f"ablation={ablation}", f"scale={scale}", f"seeds={seeds}", *overrides, *own]).rows


def _kept(study: Study, finished: Path | None) -> tuple[list[Row], list[str]]:
    """The rows of a report's table that are of this study, and a sentence on each that is of another version of it."""
    rows: list[Row] = []
    others: list[str] = []
    for cells in [] if finished is None else read_rows(finished):
        if (cells.get("ablation"), cells.get("scale")) == (study.name, study.scale):
            try:
                rows.append(from_cells(cells, study))
            except ValueError as error:
                others.append(f"a row of {cells['variant']}-s{cells['seed']} in {finished} {error}")
    return rows, list(dict.fromkeys(others))


def _unused(kept: Sequence[Row], rows: Sequence[Row], finished: Path | None) -> Iterator[str]:
    """Rows of ``finished`` whose run is not one that this sweep would make."""
    there = {identity(row)[:2]: row["run"] for row in rows}
    for variant, seed, run in dict.fromkeys(map(identity, kept)):
        if there.get((variant, seed)) != run:
            yield f"rows of {variant}-s{seed} in {finished} are of the run {run}, which has other settings"


def _command(asked: Asked, point: Point | None = None) -> str:
    """The command that runs the sweep, or one point of it."""
    others = [*asked.own, *([f"finished={asked.finished}"] if asked.finished else [])]
    if point is None:
        return shlex.join(["python", "train.py", "-m", *asked.again(), *others])
    others = [argument for argument in others if argument.partition("=")[0] not in ("variant", "seed")]
    own = [f"variant={point.variant}", f"seed={point.seed}"]
    return shlex.join(["python", "train.py", "-m", *asked.again(seeds=False), *own, *others])
