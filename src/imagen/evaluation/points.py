"""Sampling axes: settings crossed, each point a config of its own over the same trained stages."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from imagen.cli import CONF, checked
from imagen.config_check import read_yaml, typed
from imagen.errors import UserError
from imagen.runs import plain
from imagen.slots import SLOT_CHOICES

BASE_WEIGHT = "base.guidance.weight"


@dataclass(frozen=True)
class Point:
    """What is set on each axis, and the config with it set."""

    settings: dict[str, Any]
    cfg: DictConfig

    @property
    def name(self) -> str:
        """A folder's name: ``weight-1.35_threshold-static``; ``all`` where there is no axis."""
        parts = [f"{key.rpartition('.')[2]}-{typed(value)}" for key, value in self.settings.items()]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)) or "all"


def points_of(cfg: DictConfig) -> list[Point]:
    """The points of ``cfg.axes`` and ``cfg.base_weights``, in order, the last axis fastest.

    An axis is a key of the config with a list of values; on a choice (``base.threshold``) they are options' names.

    Raises: UserError naming an axis or value that there is not, or two points of one name.
    """
    axes = dict(_axes(cfg))
    points = [_point(cfg, dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
    names = [point.name for point in points]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"axes={dict(axes)} has two points called {twice[0]}: give each value once")
    return points


def _axes(cfg: DictConfig) -> Iterator[tuple[str, list[Any]]]:
    axes: Mapping[Any, Any] = {} if cfg.axes is None else dict(plain(cfg).get("axes", {}))
    if cfg.base_weights is not None:
        axes = {BASE_WEIGHT: list(cfg.base_weights), **axes}
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"axes.{key}={typed(values)} is not a list of at least one value")
        yield str(key), values


def _point(cfg: DictConfig, settings: dict[str, Any]) -> Point:
    own = cfg.copy()
    for key, value in settings.items():
        _set(own, key, value)
    return Point(settings, checked(own, "evaluate"))


def _set(cfg: DictConfig, key: str, value: Any) -> None:
    choice = key.rpartition(".")[2]
    if choice in SLOT_CHOICES:
        path = CONF / choice / f"{value}.yaml"
        if not path.is_file():
            options = ", ".join(sorted(path.stem for path in (CONF / choice).glob("*.yaml")))
            raise UserError(f"axes: {key}={typed(value)} is not an option of {choice}; there are {options}")
        value = read_yaml(path)
    try:
        OmegaConf.update(cfg, key, value, merge=False)
    except (ConfigAttributeError, ConfigKeyError, OmegaConfBaseException) as error:
        raise UserError(f"axes: {key} is no key of these stages' sampling; see --help for the slots") from error
