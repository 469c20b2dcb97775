"""One point of a sweep: trained, then measured along the ablation's axes of sampling."""

import logging
import shlex
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from imagen import evaluation
from imagen.ablation.failures import forget_failure, note_failure
from imagen.ablation.finished import finished_points
from imagen.ablation.study import Point, Study, read_study
from imagen.errors import UserError
from imagen.files import make_folder
from imagen.hold import hold
from imagen.training import train

log = logging.getLogger(__name__)


def run_point(cfg: DictConfig) -> None:
    """Train and measure the point that Hydra's multirun is at, unless that was done or another worker is at it.

    An error is noted in the sweep's folder, and the sweep goes on with the next.
    """
    hydra = HydraConfig.get()
    name, _, scale = cfg.sweep.rpartition("-")
    study = read_study(name, scale)
    point = study.of(hydra.runtime.choices["variant"], cfg)
    folder = study.folder(cfg.output_dir)
    make_folder(folder, "output_dir")
    if cfg.finished is not None and (point.variant, point.run.path.name) in finished_points(Path(cfg.finished)):
        print(f"{point.name}: its rows are in {cfg.finished} already")
        return
    with hold(folder / f".{point.name}") as alone:
        if not alone:
            print(f"{point.name}: another worker is at it")
            return
        try:
            train(cfg)
            measure(study, point)
        except Exception as error:
            command = f"python train.py {shlex.join(hydra.overrides.task)}"
            note_failure(folder, point.name, error, command)
            print(f"{point.name} failed: {error}", file=sys.stderr)
            if not isinstance(error, UserError):
                log.exception("%s failed", point.name)
        else:
            forget_failure(folder, point.name)


def measure(study: Study, point: Point) -> None:
    """What ``evaluate.py`` does of the point's stage, on those below where it enlarges, along the study's axes."""
    stages = [base.run.path for base in study.bases(point.cfg)] + [point.run.path]
    evaluation.measure(stages, point.evaluation, study.measuring(point.cfg.measure))
