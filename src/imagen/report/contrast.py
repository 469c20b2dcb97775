"""A difference of one figure between two parts of a sweep, seed by seed, and what of it is missing."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagen.ablation.study import Study
from imagen.ablation.table import Place, Row, place_of


@dataclass(frozen=True)
class Contrast:
    """The mean over all points with the settings ``of``, less that over those with ``less``."""

    of: Mapping[str, Any]
    less: Mapping[str, Any]

    @property
    def said(self) -> str:
        return f"({_words(self.of)}) − ({_words(self.less)})"


@dataclass(frozen=True)
class Difference:
    """``by_seed`` what came of a contrast, ``less`` what was subtracted there; ``missing`` a reason a seed."""

    by_seed: dict[int, float]
    less: dict[int, float]
    missing: dict[int, str]


def contrasts_of(study: Study, asked: Sequence[Mapping[str, Any]]) -> list[Contrast]:
    """What ``asked`` names; one with ``at: AXIS`` is one at each value of this axis."""
    found = []
    for one in asked:
        axis = one.get("at")
        each = [{}] if axis is None else [{axis: value} for value in study.axes[axis]]
        found += [Contrast({**one["of"], **own}, {**one["less"], **own}) for own in each]
    return found


def places_of(study: Study, settings: Mapping[str, Any]) -> Iterator[Place]:
    """A variant and point of sampling each: all that have these settings."""
    for values in itertools.product(study.variants, *study.axes.values()):
        own = dict(zip(("variant", *study.axes), values, strict=True))
        if all(own[name] == value for name, value in settings.items()):
            yield values


def difference_of(
    study: Study, rows: Sequence[Row], seeds: Sequence[int], metric: str, contrast: Contrast
) -> Difference:
    """Of each seed the difference, where all points that it needs have a finite figure."""
    by_place = {(row["seed"], *place_of(study, row)): row for row in rows}
    by_seed: dict[int, float] = {}
    less: dict[int, float] = {}
    missing: dict[int, str] = {}
    for seed in seeds:
        of, subtracted = (
            {place: by_place.get((seed, *place), {}) for place in places_of(study, settings)}
            for settings in (contrast.of, contrast.less)
        )
        lacking = [why for place, row in [*of.items(), *subtracted.items()] if (why := _lacking(place, row, metric))]
        if lacking:
            missing[seed] = ", ".join(dict.fromkeys(lacking))
        else:
            first, second = (float(np.mean([row[metric] for row in some.values()])) for some in (of, subtracted))
            by_seed[seed], less[seed] = first - second, second
    return Difference(by_seed, less, missing)


def _lacking(place: Place, row: Row, metric: str) -> str:
    """Why a point has no figure to be compared; '' where it has."""
    if not row:
        return f"{place[0]} is not there"
    if metric not in row:
        return f"{place[0]} has no {metric}"
    return "" if np.isfinite(row[metric]) else f"{place[0]} has {metric}={row[metric]}"


def _words(settings: Mapping[str, Any]) -> str:
    named = [(name.rpartition(".")[2], value) for name, value in settings.items()]
    return ", ".join(str(value) if name == "variant" else f"{name} {value}" for name, value in named) or "all"
