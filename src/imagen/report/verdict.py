"""Whether the paper's claim holds here: differences of one figure, seed by seed, with their intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from imagen.ablation.study import Study
from imagen.ablation.table import Row
from imagen.report.alike import compared, conditions_of, unlike
from imagen.report.contrast import Contrast, Difference, contrasts_of, difference_of, places_of
from imagen.report.directions import called
from imagen.report.intervals import LEVEL, Interval, interval
from imagen.report.measured import Measured
from imagen.report.pairs import pairs_of

HOLDS, FAILS, UNDECIDED = "holds", "does not hold here", "undecided"

Expected = str | Mapping[str, float]
"""``positive``, ``negative``, or ``{within: share}``: nearer to zero than this share of what is subtracted."""


@dataclass(frozen=True)
class Judged:
    """One contrast, the differences by seed, and what their interval says; ``missing`` has a reason a seed.

    ``alone`` is the interval over places of the two networks of one seed, where there is but one.
    """

    contrast: str
    outcome: str
    why: str
    differences: dict[int, float]
    missing: dict[int, str]
    interval: Interval | None
    alone: Interval | None = None

    @property
    def figure(self) -> str:
        """The mean difference and its interval in words."""
        if self.interval is None:
            return "no figure"
        return ", ".join(filter(None, (f"{self.interval.mean:+.4g}", self.interval.bounds)))

    @property
    def seeds(self) -> str:
        """How many, and which are missing, why."""
        n, asked = len(self.differences), len(self.differences) + len(self.missing)
        if not self.missing:
            return f"{n} seed{'s' * (n != 1)}"
        reasons = ", ".join(f"{seed} ({why})" for seed, why in self.missing.items())
        return f"{n} of {asked} seed{'s' * (asked != 1)}; missing: {reasons}"

    @property
    def of_these(self) -> str:
        """The interval of the two networks of one seed; '' where there is none."""
        return f"of these networks alone, over {self.alone.n} places, {self.alone.bounds}" if self.alone else ""

    @property
    def sentence(self) -> str:
        return "; ".join(filter(None, (f"{self.contrast}: {self.figure}, {self.seeds}", self.why, self.of_these)))


@dataclass(frozen=True)
class Verdict:
    """``outcome`` is of all contrasts together: a claim holds where each of them does, and fails where one does."""

    metric: str
    expected: str
    outcome: str
    contrasts: list[Judged]

    @property
    def decided(self) -> bool:
        return not self.outcome.startswith(UNDECIDED)

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        parts = "; and ".join(one.sentence for one in self.contrasts)
        every = f"{len(self.contrasts)} contrasts that must all hold: " * (len(self.contrasts) > 1)
        return f"{self.outcome}: {called(self.metric)}, {every}{parts}"


def judge(study: Study, rows: Sequence[Row], seeds: Sequence[int], measured: Sequence[Measured]) -> list[Verdict]:
    """The verdict on the study's claim, and after it those that it asks for beside. ``seeds`` are all of the sweep."""
    return [_judge(study, rows, seeds, measured, asked) for asked in study.verdicts]


def _judge(
    study: Study, rows: Sequence[Row], seeds: Sequence[int], measured: Sequence[Measured], asked: Mapping[str, Any]
) -> Verdict:
    metric, expected = asked["metric"], asked["expected"]
    contrasts = contrasts_of(study, asked["contrast"])
    found = [
        decide(contrast, difference_of(study, rows, seeds, metric, contrast), expected, len(contrasts))
        for contrast in contrasts
    ]
    differing = _unlike(study, rows, measured, metric, contrasts, found)
    if len(seeds) == 1 and not differing:
        pairs = [pairs_of(study, measured, metric, contrast) for contrast in contrasts]
        found = [replace(one, alone=pair if one.differences else None) for one, pair in zip(found, pairs, strict=True)]
    return Verdict(metric, _words(expected), _together(found, differing), found)


def decide(contrast: Contrast, difference: Difference, expected: Expected, of: int = 1) -> Judged:
    """What the interval over seeds says of one contrast ``of`` several that must all hold.

    For the claim its interval at 95 % speaks, against it the one at 1 - 0.05 / ``of`` (Bonferroni): the claim holds
    where all contrasts do, an intersection-union test, whose level is that of each (Berger 1982); but any one of them
    refutes it, and of many without a difference one would soon be beyond zero by chance.
    """
    values = list(difference.by_seed.values())
    found = interval(values) if values else None
    wider = interval(values, _against(of)) if values else None
    outcome, why = _outcome(found, wider, expected, list(difference.less.values()), of)
    return Judged(contrast.said, outcome, why, difference.by_seed, difference.missing, found)


def _against(of: int) -> float:
    return 1 - (1 - LEVEL) / of


def _outcome(
    found: Interval | None, wider: Interval | None, expected: Expected, less: Sequence[float], of: int
) -> tuple[str, str]:
    """The expected side is a range: within it the claim holds, beyond it not, across a bound nothing is decided."""
    if found is None or wider is None:
        return UNDECIDED, "no seed has this figure of all the points that are compared"
    if found.n == 1:
        return UNDECIDED, "one seed says nothing of others"
    if found.low is None or found.high is None or wider.low is None or wider.high is None:
        return UNDECIDED, "all seeds give the same figure, which says nothing of their spread"
    low, high = _side(expected, less)
    words = _words(expected) + f" (±{high:.4g})" * isinstance(expected, Mapping)
    if low < found.low and found.high < high:
        return HOLDS, f"{words}, as expected"
    if wider.high < low or high < wider.low:
        return FAILS, f"{words} was expected"
    bound = "a bound of the margin" if isinstance(expected, Mapping) else "zero"
    if found.high < low or high < found.low:
        against = f"of {of} contrasts one counts against the claim by its {_against(of):.2%} interval"
        return UNDECIDED, f"{words} was expected; {against}, which holds {bound}"
    return UNDECIDED, f"the interval holds {bound}; {words} was expected"


def _side(expected: Expected, less: Sequence[float]) -> tuple[float, float]:
    if isinstance(expected, Mapping):
        margin = expected["within"] * abs(float(np.mean(less)))
        return -margin, margin
    return (0.0, math.inf) if expected == "positive" else (-math.inf, 0.0)


def _together(found: Sequence[Judged], differing: Sequence[str]) -> str:
    """All must hold; one that does not, by its wider interval, is enough against the claim."""
    if differing:
        return f"{UNDECIDED}: not measured alike ({', '.join(differing)})"
    outcomes = {one.outcome for one in found}
    return FAILS if FAILS in outcomes else HOLDS if outcomes == {HOLDS} else UNDECIDED


def _unlike(
    study: Study,
    rows: Sequence[Row],
    measured: Sequence[Measured],
    metric: str,
    contrasts: Sequence[Contrast],
    found: Sequence[Judged],
) -> list[str]:
    """What the points behind a verdict do not have in common, over all its seeds."""
    own: list[Row] = []
    for contrast, judged in zip(contrasts, found, strict=True):
        places = [place for settings in (contrast.of, contrast.less) for place in places_of(study, settings)]
        own += compared(study, rows, places, judged.differences)
    return unlike(conditions_of(study, own, measured, metric))


def _words(expected: Expected) -> str:
    return f"within {expected['within']:.2g} of what is subtracted" if isinstance(expected, Mapping) else expected
