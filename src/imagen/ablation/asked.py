"""What a command line asks of an ablation: the sweep, the evaluation and the report read it alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from imagen.ablation import OURS
from imagen.ablation.study import Point, Study, read_study
from imagen.config_check import typed
from imagen.errors import UserError

OF_THE_REPORT = ("finished", "wandb")
"""Keys that the report reads itself; of these ``finished`` is also one of ``train.py``."""

SMALLEST = "demo"
"""The scale where none is said."""

MOST_SEEDS = 1000
"""More are a slip: their points alone would take minutes to list."""


@dataclass(frozen=True)
class Asked:
    """A study, how many seeds, and whatever else was said."""

    study: Study
    seeds: int
    own: list[str]
    """The overrides that hold for every point, and ``variant=`` or ``seed=`` in place of the study's."""
    flags: list[str]
    finished: Path | None = None
    wandb: str = "null"

    @classmethod
    def of(cls, arguments: Sequence[str], keys: Sequence[str] = ()) -> "Asked":
        """``keys`` of the report's that are read here; the others stay overrides.

        Raises: UserError if there is no such ablation or scale, ``seeds`` is no number of 1 to 1000, or what the
        ablation says is said beside it. Without ``scale=`` it is the smallest.
        """
        said = {_key(argument): argument.partition("=")[2] for argument in arguments}
        if "ablation" not in said and not said.keys() & {"scale", "seeds"}:
            raise UserError("ablation= is missing: give one, ablation=encoder_size say")
        if "ablation" not in said:
            raise UserError("scale and seeds are of an ablation: give ablation=... too, or name seeds as seed=0,1,2")
        for key in said.keys() & {"experiment", "sweep"}:
            raise UserError(
                f"{key}={said[key]} does not go with ablation={said['ablation']}, which has its own: leave it out, or "
                "write a file of your own in conf/ablation (docs/ablations.md)"
            )
        seeds = said.get("seeds", "1")
        if not seeds.isdecimal() or not 1 <= int(seeds) <= MOST_SEEDS:
            raise UserError(f"seeds={seeds} must be a whole number of 1 to {MOST_SEEDS}: how many runs of each variant")
        finished = said.get("finished", "null") if "finished" in keys else "null"
        flags = [argument for argument in arguments if argument.startswith("-")]
        return cls(
            read_study(said["ablation"], said.get("scale", SMALLEST)),
            int(seeds),
            own=[one for one in arguments if one not in flags and _key(one) not in (*OURS, *keys)],
            flags=flags,
            finished=None if finished == "null" else Path(finished),
            wandb=said.get("wandb", "null") if "wandb" in keys else "null",
        )

    @property
    def is_multirun(self) -> bool:
        return bool({"-m", "--multirun"} & {*self.flags})

    def swept(self) -> list[str]:
        """What of the command line's own a multirun goes over."""
        return [argument for argument in self.own if _is_swept(argument)]

    def again(self, *, seeds: bool = True) -> list[str]:
        """What of the ablation is to be said to ask for the same."""
        said = [f"ablation={self.study.name}", f"scale={self.study.scale}"]
        return [*said, f"seeds={self.seeds}"] if seeds and self.seeds > 1 else said

    def overrides(self) -> list[str]:
        """Those of the multirun that it stands for."""
        ours = {
            "experiment": self.study.experiment,
            "seed": ",".join(map(str, range(self.seeds))),  # the slower, so that half a sweep has all variants
            "variant": ",".join(self.study.variants),
        }
        there = {_key(argument) for argument in self.own}
        return [*(f"{key}={value}" for key, value in ours.items() if key not in there), *self.own]

    def points(self) -> list[Point]:
        """All points of the multirun, in its order; what is set beside variant and seed holds for each.

        Raises: UserError if there is no such variant or seed, or another key than these is swept: its points would
        have no name.
        """
        swept: dict[str, list[str]] = {}
        rest: list[str] = []
        for argument in self.overrides():
            key, values = _key(argument), _values(argument)
            if key in ("variant", "seed"):
                swept[key] = values
            elif _is_swept(argument):
                raise UserError(
                    f"{argument} sweeps another key than the ablation: its axes are variant and seed; write a file of "
                    "your own in conf/ablation for more (docs/ablations.md)"
                )
            elif key != "experiment":
                rest.append(argument)
        for variant in swept["variant"]:
            if variant not in self.study.variants:
                there = ", ".join(self.study.variants)
                raise UserError(f"variant={variant} is none of ablation={self.study.name}: it has {there}")
        for seed in swept["seed"]:
            if not seed.isdecimal():
                raise UserError(f"seed={seed} must be a whole number of at least 0, or several: seed=0,1,2")
        for key, values in swept.items():
            if twice := [value for value in values if values.count(value) > 1]:
                raise UserError(f"{key}={','.join(values)} names {twice[0]} twice: give each once")
        return [self.study.point(variant, int(seed), rest) for seed in swept["seed"] for variant in swept["variant"]]


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0]


def _is_swept(argument: str) -> bool:
    """Whether it has several values, each a point of its own; what Hydra is told it reads itself."""
    return len(_values(argument)) > 1 and not _key(argument).startswith("hydra")


def _values(argument: str) -> list[str]:
    """The values that an override goes over. Raises: OverrideParseException, of which the scripts make a sentence."""
    override = OverridesParser.create().parse_overrides([argument])[0]
    if not override.is_sweep_override():
        return [typed(override.value())]
    return [typed(value) for value in override.sweep_iterator(lambda value: value)]
