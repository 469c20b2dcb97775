"""A sweep's finished points as rows: what was set, what training cost, every figure; and which points are missing."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imagen.ablation.asked import OF_THE_REPORT, Asked
from imagen.ablation.failures import failures
from imagen.ablation.finished import Finished, read_finished
from imagen.ablation.study import Point, Study
from imagen.ablation.table import Row
from imagen.errors import UserError
from imagen.report.measured import Measured, read_measured
from imagen.report.missing import Missing, why_missing
from imagen.report.strays import strays_of


@dataclass(frozen=True)
class Sweep:
    """What there is of a sweep: a row a variant, seed and point of sampling.

    ``measured`` are the points whose runs are here, ``missing`` those that give no rows, ``strays`` what else was
    measured for the study, under other settings or before, a sentence each. ``command`` starts the sweep again.
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
    study = asked.study
    order = list(study.variants)  # of the table; that of the sweep goes through the seeds first
    points = sorted(asked.points(), key=lambda point: order.index(point.variant))
    folder = study.folder(points[0].cfg.output_dir)
    finished = read_finished(study, asked.finished)
    failed = failures(folder)
    rows: list[Row] = []
    missing: list[Missing] = []
    measured: list[Measured] = []
    for point in points:
        found = read_measured(study, point)
        if isinstance(found, Measured):
            rows += found.rows
            measured.append(found)
        elif point.key in finished.points:
            rows += finished.points[point.key]
        else:
            missing.append(why_missing(point, found, failed.get(point.key), _command(asked, point)))
    if not rows:
        first = missing[0]
        raise UserError(
            f"{study.full_name} has not one finished point of {len(points)} in {points[0].cfg.output_dir}: "
            f"{first.name}: {first.why}; start it with `{_command(asked)}`"
        )
    strays = [
        *strays_of(study, points),
        *_of_before(measured, failed),
        *finished.halves,
        *_unused(finished, points, asked.finished),
    ]
    trained = sorted({point.seed for point in points})
    return Sweep(study, folder, rows, measured, missing, strays, trained, _command(asked), asked.finished, asked.own)


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


def _of_before(measured: Sequence[Measured], failed: Mapping[str, dict[str, str]]) -> Iterator[str]:
    """Points whose rows are there and whose last try failed: their settings of measuring may have changed since."""
    for point in (one.point for one in measured):
        if point.key in failed:
            yield f"{point.name} failed when measured again, its rows are of before: {failed[point.key]['error']}"


def _unused(finished: Finished, points: Sequence[Point], path: Path | None) -> Iterator[str]:
    """Rows of a table that are of a variant and seed of this sweep, and not of its point there."""
    wanted = {(point.variant, point.seed): point.key for point in points}
    for key, (row, *_) in finished.points.items():
        own = row["variant"], row["seed"]
        if wanted.get(own, key) != key:
            made = f"the run {row['run']}, measured as {row['evaluation']}"
            yield f"rows of {own[0]}-s{own[1]} in {path} are of {made}, which has other settings"


def _command(asked: Asked, point: Point | None = None) -> str:
    """The command that runs the sweep, or one point of it."""
    others = [*asked.own, *([f"finished={asked.finished}"] if asked.finished else [])]
    if point is None:
        return shlex.join(["python", "train.py", "-m", *asked.again(), *others])
    others = [argument for argument in others if argument.partition("=")[0] not in ("variant", "seed")]
    own = [f"variant={point.variant}", f"seed={point.seed}"]
    return shlex.join(["python", "train.py", "-m", *asked.again(seeds=False), *own, *others])
