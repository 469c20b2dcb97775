"""From ``-m ablation=encoder_size scale=demo seeds=3`` to the multirun that it stands for, and what is around it."""

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from imagen.ablation import OURS
from imagen.ablation.failures import failures
from imagen.ablation.study import ALONE, Point, Study, read_study
from imagen.cli import CONF, as_overrides
from imagen.config_check import typed
from imagen.errors import UserError
from imagen.files import make_folder
from imagen.hold import hold


@contextmanager
def as_multirun(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yield the arguments of Hydra's multirun over an ablation's variants and seeds.

    What the points need is made before, once; points that failed are listed after, and end with status 1.

    Raises: UserError if the ablation or the scale is none, or the arguments are not a multirun's.
    """
    asked = asked_of(arguments)
    if "ablation" not in asked:
        raise UserError("scale and seeds are of an ablation: add -m ablation=..., or name seeds as seed=0,1,2")
    if not {"-m", "--multirun"} & set(arguments):
        raise UserError(f"ablation={asked['ablation']} is a multirun: add -m")
    study = study_of(asked)
    study.store()
    flags = [argument for argument in arguments if argument.startswith("-")]
    own = [argument for argument in arguments if argument not in flags and _key(argument) not in OURS]
    swept = [*overrides_of(study, seeds_of(asked), own), *own]
    points = points_of(study, swept)
    _prepare(study, points)
    print(f"{study.claim}? {len(points)} points: {', '.join(point.name for point in points)}", flush=True)
    yield [*flags, *swept, f"sweep={study.full_name}"]
    if failed := failures(study.folder(points[0].cfg.output_dir)):
        for name, failure in failed.items():
            print(f"failed: {name}: {failure['error']}\n  {failure['command']}", file=sys.stderr)
        sys.exit(f"error: {len(failed)} points failed; the same command runs these again and leaves the others")


def evaluation_of(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``evaluate.py`` for an ablation of sampling, of the stages that they name.

    Its seeds are those of sampling, an axis as the others. Raises: UserError if the ablation trains variants.
    """
    asked = asked_of(arguments)
    if "ablation" not in asked:
        raise UserError("scale and seeds are of an ablation: add ablation=...")
    study, count = study_of(asked), seeds_of(asked)
    if list(study.variants) != [ALONE]:
        raise UserError(
            f"ablation={study.name} trains {', '.join(study.variants)}: run python train.py -m ablation={study.name} "
            f"scale={study.scale}"
        )
    own = [argument for argument in arguments if _key(argument) not in OURS]
    if not any(_key(argument) == "output_dir" for argument in own):
        own = [f"output_dir=outputs/evaluations/{study.full_name}", *own]
    return study.measuring(own, **({"seed": list(range(count))} if count > 1 else {}))


def asked_of(arguments: Sequence[str]) -> dict[str, str]:
    """The values of the keys that are a sweep's own."""
    pairs = (argument.partition("=") for argument in arguments if _key(argument) in OURS)
    return {key: value for key, _, value in pairs}


def study_of(asked: dict[str, str]) -> Study:
    """Raises: UserError if a scale is missing, or the ablation or the scale is none."""
    if "scale" not in asked:
        raise UserError(f"ablation={asked['ablation']} is of several sizes: add scale=demo, gpu or paper")
    return read_study(asked["ablation"], asked["scale"])


def seeds_of(asked: dict[str, str]) -> int:
    """How many seeds. Raises: UserError unless it is a number of at least 1."""
    said = asked.get("seeds", "1")
    if not said.isdecimal() or int(said) < 1:
        raise UserError(f"seeds={said} must be a whole number of at least 1: how many runs of each variant")
    return int(said)


def points_of(study: Study, arguments: Sequence[str]) -> list[Point]:
    """All points of a multirun, in its order; what it sets beside variant and seed holds for each.

    Raises: UserError if another key than these is swept: its points would have no name.
    """
    swept: dict[str, list[str]] = {}
    rest: list[str] = []
    for argument in arguments:
        if _key(argument) == "experiment":
            continue
        values = _values(argument)
        if _key(argument) in ("variant", "seed"):
            swept[_key(argument)] = values
        elif len(values) > 1 and not _key(argument).startswith("hydra"):
            raise UserError(
                f"{argument} sweeps another key than the ablation: its axes are variant and seed; write a file of your "
                "own in conf/ablation for more (docs/ablations.md)"
            )
        else:
            rest.append(argument)
    if unknown := set(swept["variant"]) - set(study.variants):
        raise UserError(
            f"variant={sorted(unknown)[0]} is none of ablation={study.name}: it has {', '.join(study.variants)}"
        )
    return [study.point(variant, int(seed), rest) for seed in swept["seed"] for variant in swept["variant"]]


def overrides_of(study: Study, seeds: int, own: Sequence[str]) -> list[str]:
    """The overrides that the ablation stands for, less those that the command line sets itself."""
    ours = {
        "experiment": study.experiment,
        "seed": ",".join(map(str, range(seeds))),  # the slower, so that half a sweep has all variants
        "variant": ",".join(study.variants),
    }
    there = {_key(argument) for argument in own}
    return [f"{key}={value}" for key, value in ours.items() if key not in there]


def _prepare(study: Study, points: Sequence[Point]) -> None:
    """Run the commands that make what the points need, each once, and train the stages below."""
    todo = [_filled(command, point) for point in points for command in study.prepare]
    todo += [
        f"train.py experiment={base.cfg.name} output_dir={base.cfg.output_dir} data.root={base.cfg.data.root}"
        for base in study.bases(points[0].cfg)
        if not base.run.done.is_file()
    ]
    folder = study.folder(points[0].cfg.output_dir)
    make_folder(folder, "output_dir")
    with hold(folder / ".preparing", wait=True):
        for command in dict.fromkeys(todo):
            _run(command)


def _run(command: str) -> None:
    """Run one of the project's scripts. Raises: UserError if it ends with another status than 0."""
    print(f"$ python {command}", flush=True)
    status = subprocess.run([sys.executable, *shlex.split(command)], cwd=CONF.parent).returncode
    if status:
        raise UserError(f"`python {command}`, which the sweep needs, ended with status {status}: see above")


def _filled(command: str, point: Point) -> str:
    """A command of the scale's with the point's own words in it."""
    return command.format(root=point.cfg.data.root, text_encoder=as_overrides("text_encoder", point.cfg.text_encoder))


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0]


def _values(argument: str) -> list[str]:
    """The values that an override goes over. Raises: UserError where it is none that Hydra reads."""
    try:
        override = OverridesParser.create().parse_overrides([argument])[0]
    except OverrideParseException:
        return []  # Hydra says so, when it composes
    if not override.is_sweep_override():
        return [typed(override.value())]
    return [typed(value) for value in override.sweep_iterator(lambda value: value)]
