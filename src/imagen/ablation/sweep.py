"""From ``-m ablation=encoder_size scale=demo seeds=3`` to the multirun that it stands for, and what is around it."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import HydraException

from imagen.ablation.asked import Asked
from imagen.ablation.failures import failures
from imagen.ablation.finished import read_finished
from imagen.ablation.prepare import prepare
from imagen.ablation.processes import Processes
from imagen.ablation.study import ALONE, Point, Study, naming
from imagen.build import run_config
from imagen.build_check import check
from imagen.cli import compose, explain
from imagen.errors import UserError
from imagen.evaluation.points import points_of
from imagen.launching import are_several, is_first_process
from imagen.slots import store_stages

OF_THE_SWEEP = ("stages", "output_dir", "axes", "base_weights", "worker_index", "worker_count")
"""Keys of ``evaluate.py`` that are no other measuring of the same points."""


@contextmanager
def as_multirun(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yield the arguments of Hydra's multirun over an ablation's variants and seeds.

    What the points need is made before, once; those of them that failed are listed after, and end with status 1. Of
    several processes that torchrun or srun has started the first prepares, and the others wait for it.

    Raises: UserError if the ablation or the scale is none, the arguments are not a multirun's, or what they say could
    not be trained or measured.
    """
    asked = Asked.of(arguments)
    study = asked.study
    if not asked.is_multirun:
        raise UserError(f"ablation={study.name} is a multirun: add -m")
    study.store()
    points = asked.points()
    finished = None if points[0].cfg.finished is None else Path(points[0].cfg.finished)
    kept = read_finished(study, finished).points
    for variant, point in {point.variant: point for point in points}.items():
        with naming(variant):
            check(point.cfg)
    _check_measuring(study, points[0])
    folder = study.folder(points[0].cfg.output_dir)
    if is_first_process():
        names = ", ".join(point.name for point in points)
        print(f"{study.name} at scale={study.scale}: {study.claim}? {len(points)} points: {names}", flush=True)
    if are_several():  # met before, since torch waits half an hour for all to come: a stage below may train for longer
        Processes.of(points[0].cfg, points[0].run).told_by_first(lambda: prepare(study, points))
    else:
        prepare(study, points)
    yield [*asked.flags, *asked.overrides(), f"sweep={study.full_name}"]
    noted = failures(folder)
    failed = {point.name: noted[point.key] for point in points if point.key in noted}
    if is_first_process():
        done = [point for point in points if point.key in kept or (point.evaluation / "report.json").is_file()]
        there = sum(point.name not in failed for point in done)
        report = shlex.join(["python", "-m", "imagen.report", *asked.again(), *asked.own])
        print(f"{there} of {len(points)} points are there: {report}", flush=True)
    if failed:
        for name, failure in failed.items():
            print(f"failed: {name}: {failure['error']}\n  {failure['command']}", file=sys.stderr)
        sys.exit(f"error: {len(failed)} of {len(points)} points failed; the same command runs these again")


def _check_measuring(study: Study, point: Point) -> None:
    """Compose the evaluation of a point that is to be trained yet.

    Raises: UserError if it does not compose, or ``measure`` has keys that are the ablation's own.
    """
    own = [one for one in point.cfg.measure if one.partition("=")[0] in OF_THE_SWEEP]
    if own:
        raise UserError(
            f"measure={own[0]} is the sweep's own to set: leave it out; for other axes of sampling write a file of "
            "your own in conf/ablation (docs/ablations.md)"
        )
    stages = [*study.bases(point.cfg), point]
    store_stages([run_config(stage.cfg) for stage in stages])
    paths = json.dumps([str(stage.run.path) for stage in stages])
    try:
        points_of(compose("evaluate", [f"stages={paths}", *study.measuring(point.cfg.measure)]))
    except HydraException as error:  # which is of another config than the script's own
        raise UserError(f"ablation={study.name} could not be measured: {explain(error, 'evaluate')}") from error


def evaluation_of(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``evaluate.py`` for an ablation of sampling, of the stages that they name.

    Its seeds are those of sampling, an axis as the others. With ``-m`` or without it is one evaluation. Raises:
    UserError if the ablation trains variants, or a key is swept.
    """
    asked = Asked.of(arguments)
    study = asked.study
    if list(study.variants) != [ALONE]:
        raise UserError(
            f"ablation={study.name} trains {', '.join(study.variants)}: run python train.py -m ablation={study.name} "
            f"scale={study.scale}"
        )
    if swept := asked.swept():
        raise UserError(
            f"{swept[0]} sweeps a key, and each value would take the place of the last in one report: give seeds= for "
            "several seeds, or one value and an output_dir= of its own"
        )
    if is_first_process():
        print(f"{study.name} at scale={study.scale}: {study.claim}?", flush=True)
    own = asked.own
    if not any(argument.startswith("output_dir=") for argument in own):
        own = [f"output_dir=outputs/evaluations/{study.full_name}", *own]
    seeds = {"seed": list(range(asked.seeds))} if asked.seeds > 1 else {}
    return [*asked.flags, *study.measuring(own, **seeds)]
