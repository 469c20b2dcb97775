"""One point of a sweep: trained, then measured along the ablation's axes of sampling."""

import logging
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from imagen import evaluation
from imagen.ablation.failures import forget_failure, note_failure
from imagen.ablation.finished import read_finished
from imagen.ablation.processes import PATIENCE, Processes
from imagen.ablation.run_lock import run_lock
from imagen.ablation.study import Point, Study, study_named
from imagen.cli import is_of_the_disk, of_the_disk
from imagen.errors import GoneError, UserError
from imagen.files import make_folder
from imagen.hold import hold
from imagen.training import train

log = logging.getLogger(__name__)

TOLD, OUT_OF_TIME = 1, 128
"""Statuses by which ``train`` ends where the first process has failed, and where the run has had its time."""

SOON = timedelta(minutes=2)
"""How long one process that failed to train waits for the others: they have failed too, or never will."""


def run_point(cfg: DictConfig) -> None:
    """Train and measure the point that Hydra is at, unless that was done or another worker is at it.

    An error is noted in the sweep's folder, and the sweep goes on with the next. Several processes do it together.
    Raises: UserError if no variant was picked.
    """
    hydra = HydraConfig.get()
    study, variant = study_named(cfg.sweep), hydra.runtime.choices["variant"]
    if variant is None:
        raise UserError(f"sweep={cfg.sweep} is of variants: add variant=, one of {', '.join(study.variants)}")
    point = study.of(variant, cfg)
    folder = study.folder(cfg.output_dir)
    make_folder(folder, "output_dir")
    if cfg.finished is not None and point.key in read_finished(study, Path(cfg.finished)).points:
        forget_failure(folder, point.key)
        print(f"{point.name}: its rows are in {cfg.finished} already")
        return
    with ExitStack() as held:
        try:
            processes = Processes.of(cfg, point.run)
        except UserError as error:
            wrong = str(error)
        else:
            if not processes.told_by_first(lambda: _taken(folder, point, held)):
                print(f"{point.name}: another worker is at it")
                return
            wrong = _tried(folder, point, processes, lambda: train(point.cfg), SOON)
            wrong = wrong or _tried(folder, point, processes, lambda: measure(study, point, processes), PATIENCE)
            if not processes.is_first:
                return
        if wrong:
            _note(folder, point, wrong)
        else:
            forget_failure(folder, point.key)


def measure(study: Study, point: Point, processes: Processes) -> None:
    """What ``evaluate.py`` does of the point's stage, on those below where it enlarges, along the study's axes.

    Each training seed is a seed of sampling too, so that what varies over seeds takes in how the pictures fell out.
    """
    stages = [base.run.path for base in study.bases(point.cfg)] + [point.run.path]
    more = [f"seed={point.seed}", *processes.share()]
    evaluation.measure(stages, point.evaluation, study.measuring(point.cfg.measure, *more))


def _taken(folder: Path, point: Point, held: ExitStack) -> bool:
    """Whether the point is this worker's; its run, which another ablation may have, is waited for then."""
    if not held.enter_context(hold(folder / f".{point.key}")):
        return False
    held.enter_context(run_lock(point))
    return True


def _tried(
    folder: Path, point: Point, processes: Processes, step: Callable[[], object], patience: timedelta
) -> str | None:
    """Take a step, as all processes do at once; what went wrong in one of them, where something did.

    One that failed alone may be waited for inside of the step: it notes what went wrong after ``patience``, and ends,
    so that torchrun or srun ends the others. Raises: GoneError then.
    """
    wrong = _error(point, processes, step)
    try:
        return next(filter(None, processes.gathered(wrong, patience if wrong else PATIENCE)), None)
    except GoneError:
        if wrong:
            _note(folder, point, wrong)
        raise


def _error(point: Point, processes: Processes, step: Callable[[], object]) -> str | None:
    """Take a step; what went wrong, where something did. A run that was asked to stop ends the sweep.

    Raises: GoneError if another process has ended.
    """
    try:
        step()
    except SystemExit as ended:
        if ended.code == OUT_OF_TIME:
            return f"{point.run.path} was stopped by trainer.max_time or a callback: give it more time, and it goes on"
        if ended.code != TOLD or processes.is_first:
            raise
    except GoneError:
        raise
    except Exception as error:
        if is_of_the_disk(error):
            return of_the_disk(error)
        if not isinstance(error, UserError):
            log.exception("%s failed", point.name)
        return str(error) or type(error).__name__
    return None


def _note(folder: Path, point: Point, wrong: str) -> None:
    note_failure(folder, point.key, wrong, f"python train.py {shlex.join(HydraConfig.get().overrides.task)}")
    print(f"{point.name} failed: {wrong}", file=sys.stderr)
