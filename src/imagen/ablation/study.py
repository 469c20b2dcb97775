"""What an ablation is: variants that are trained, seeds, axes of sampling along which each is measured.

``conf/ablation/<name>.yaml`` says it for each scale; ``conf/scale/<scale>.yaml`` says what all ablations of a scale
have in common: the experiments whose stages are trained, what comes before the first, and how they are measured.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from imagen.ablation.study_check import check_file, check_scale, check_verdict
from imagen.build import run_config
from imagen.cli import CONF, among, compose, override
from imagen.config_check import read_yaml, typed
from imagen.errors import UserError
from imagen.evaluation.command import PLACES
from imagen.runs import RunFolder

ALONE = "default"
"""The one variant of an ablation that trains nothing of its own: the scale's stage as it is."""


@dataclass(frozen=True)
class Point:
    """One training of a study: what it is called, its config, and where it lives."""

    variant: str
    seed: int
    cfg: DictConfig
    run: RunFolder
    evaluation: Path
    """The folder of its measurements, which ``evaluate.py`` writes."""

    @property
    def name(self) -> str:
        return f"{self.variant}-s{self.seed}"

    @property
    def key(self) -> str:
        """The name that no other training or measuring has."""
        return f"{self.variant}-{self.run.path.name}-{self.evaluation.name}"


@dataclass(frozen=True)
class Study:
    """An ablation at one scale.

    ``paper`` names its figure there, ``claim`` what it is said to show. ``stage`` is the one that is trained, base, sr1
    or sr2; ``variants`` what each sets, ``axes`` what sampling is measured along. ``prepare`` are commands that come
    before the first point, their ``{root}`` and ``{text_encoder}`` the point's; ``measure`` overrides of
    ``evaluate.py``. ``verdict`` says which difference of which figure decides the claim, ``also`` which others are
    judged, ``plot`` which figures are drawn against each other.
    """

    name: str
    scale: str
    paper: str
    claim: str
    stage: str
    experiments: dict[str, str]
    """Of each of the scale's stages, the first first."""
    prepare: list[str]
    measure: list[str]
    variants: dict[str, dict[str, Any]]
    plot: dict[str, Any]
    verdict: dict[str, Any]
    axes: dict[str, list[Any]] = field(default_factory=dict)
    also: list[dict[str, Any]] = field(default_factory=list)

    @property
    def full_name(self) -> str:
        return f"{self.name}-{self.scale}"

    @property
    def experiment(self) -> str:
        """That of the stage that is trained."""
        return self.experiments[self.stage]

    def measuring(self, own: Sequence[str], *more: str, **axes: list[Any]) -> list[str]:
        """The overrides of ``evaluate.py``: the study's and ``more``, ``own`` in their place; ``axes`` come first."""
        said = ",".join(f"{key}:[{','.join(map(typed, values))}]" for key, values in {**axes, **self.axes}.items())
        ours = [*more, *self.measure, *([f"axes={{{said}}}"] if said else [])]
        there = {one.partition("=")[0] for one in own}
        return [*(one for one in ours if one.partition("=")[0] not in there), *own]

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """That on the claim, and after it those beside, whose contrasts are the claim's where they name none."""
        return [self.verdict, *({"contrast": self.verdict["contrast"], **one} for one in self.also)]

    def folder(self, output_dir: str | Path) -> Path:
        """Where the sweep keeps its locks and errors, and the report what it draws."""
        return Path(output_dir) / "ablations" / self.full_name

    def store(self) -> None:
        """Make the variants options of Hydra's group ``variant``, so that a multirun can go over them."""
        for name, settings in self.variants.items():
            ConfigStore.instance().store(group="variant", name=name, node=_node(settings), package="_global_")

    def point(self, variant: str, seed: int, overrides: Sequence[str] = ()) -> Point:
        """The training of one variant and seed, with what else the command line sets."""
        self.store()
        chosen = [f"experiment={self.experiment}", f"variant={variant}", f"seed={seed}"]
        with naming(variant):
            return self.of(variant, compose("train", [*chosen, *overrides]))

    def of(self, variant: str, cfg: DictConfig) -> Point:
        """The training that a composed config is."""
        run = RunFolder.of(run_config(cfg))
        return Point(variant, cfg.seed, cfg, run, run.path / "evaluations" / self._measured(cfg.measure))

    def _measured(self, own: Sequence[str]) -> str:
        """The name of the measurements, which tells those that ``own`` changes."""
        usual = self.measuring([])
        changed = sorted(one for one in own if one not in usual and one.partition("=")[0] not in PLACES)
        if not changed:
            return self.full_name
        return f"{self.full_name}-{hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:8]}"

    def bases(self, cfg: DictConfig) -> list[Point]:
        """The trainings below the trained stage, which draw what it enlarges: the same for all variants and seeds."""
        below = itertools.takewhile(lambda stage: stage != self.stage, self.experiments)
        return [self.of(stage, compose("train", self.base(stage, cfg))) for stage in below]

    def base(self, stage: str, cfg: DictConfig) -> list[str]:
        """The overrides of ``train.py`` for a stage below."""
        placed = [override("output_dir", cfg.output_dir), override("data.root", cfg.data.root)]
        return [f"experiment={self.experiments[stage]}", *placed]


@contextmanager
def naming(variant: str) -> Iterator[None]:
    """What is wrong with a variant names it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"variant={variant}: {error}") from error


def read_study(name: str, scale: str) -> Study:
    """Read an ablation at a scale.

    Raises: UserError naming what there is, where it is not of those; or the key of the file that is wrong.
    """
    of_name, of_scale, where = _read("ablation", name), _read("scale", scale), f"conf/ablation/{name}.yaml"
    check_scale(of_scale, f"conf/scale/{scale}.yaml")
    check_file(of_name, where, scale, _options("scale"))
    own, stage, claim = of_name[scale], _at(of_name["stage"], scale), _at(of_name["claim"], scale)
    if stage not in of_scale["stages"]:
        raise UserError(f"{where}: stage={stage} is none of scale={scale}: {among(stage, [*of_scale['stages']])}")
    of_stage = of_scale["stages"][stage]
    study = Study(
        name,
        scale,
        paper=of_name["figure"],
        claim=claim,
        stage=stage,
        experiments={key: node["experiment"] for key, node in of_scale["stages"].items()},
        prepare=of_scale["prepare"],
        measure=[*of_stage["measure"], *(own.get("measure") or [])],
        variants=own.get("variants") or {ALONE: {}},
        plot=own.get("plot") or of_stage["plot"],
        verdict=own["verdict"],
        axes=own.get("axes") or {},
        also=own.get("also") or [],
    )
    for verdict in study.verdicts:
        check_verdict(verdict, f"{where}: {scale}'s verdict on {verdict['metric']}", study.axes, study.variants)
    return study


def study_named(full_name: str) -> Study:
    """The study of ``sweep=encoder_size-demo``. Raises: as ``read_study``."""
    name, _, scale = full_name.rpartition("-")
    if not name:
        raise UserError(f"sweep={full_name} names no sweep: write <ablation>-<scale>, encoder_size-demo say")
    return read_study(name, scale)


def _at(said: str | dict[str, str], scale: str) -> str:
    """What is said for all scales, or for each."""
    return said[scale] if isinstance(said, dict) else said


def _read(group: str, option: str) -> dict[str, Any]:
    path = CONF / group / f"{option}.yaml"
    if not path.is_file():
        raise UserError(f"{group}={option} is not an option of {group}: there are {', '.join(_options(group))}")
    return read_yaml(path)


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _node(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A variant as a file of Hydra's: picks of options become defaults, the rest keys."""
    picks = {key: value for key, value in settings.items() if (CONF / key.partition("@")[0]).is_dir()}
    node: dict[str, Any] = {"defaults": [{f"override /{key}": value} for key, value in picks.items()]}
    for key, value in settings.items():
        if key not in picks:
            *parents, last = key.split(".")
            inner = node
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
    return node
