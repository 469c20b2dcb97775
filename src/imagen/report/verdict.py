"""Whether the paper's claim holds here: a difference of one figure, seed by seed, with its interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagen.ablation.study import Study
from imagen.errors import UserError
from imagen.report.directions import called, higher_is_better
from imagen.report.intervals import LEVEL, Interval, interval
from imagen.report.table import Row

LOSS = "heldout_loss"
UNDECIDED = "undecided"
OF_CLAIM = ("holds", "does not hold here: the opposite")
OF_LOSS = ("agrees", "says the opposite")


@dataclass(frozen=True)
class Verdict:
    """``differences`` by seed of ``metric``, as the study's contrast weighs them, and what their interval says."""

    metric: str
    expected: str
    contrast: str
    outcome: str
    why: str
    differences: dict[int, float]
    interval: Interval | None

    @property
    def figure(self) -> str:
        """The mean difference and its interval in words."""
        if self.interval is None:
            return "no figure"
        if self.interval.low is None or self.interval.high is None:
            return f"{self.interval.mean:+.4g}"
        bounds = f"[{self.interval.low:+.4g}, {self.interval.high:+.4g}]"
        return f"{self.interval.mean:+.4g}, {LEVEL:.0%} interval {bounds}"

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        n = len(self.differences)
        seeds = f"{n} seed{'s' * (n != 1)}"
        return f"{self.outcome}: {called(self.metric)}, {self.contrast}: {self.figure}, {seeds}; {self.why}"


def judge(study: Study, rows: Sequence[Row]) -> Verdict:
    """The verdict on the study's claim. Raises: UserError if its contrast names what the study has not."""
    asked = study.verdict
    _check(study)
    return decide(rows, asked["metric"], asked["expected"], asked["contrast"])


def judge_loss(study: Study, rows: Sequence[Row]) -> Verdict | None:
    """The same contrast of the held-out loss, lower where the claim's figure is better.

    None where no row has it, or where the contrast is within one training, whose loss is one figure.
    """
    asked = study.verdict
    times: dict[str, float] = {}
    for term in asked["contrast"]:
        variant = term["of"].get("variant", "")
        times[variant] = times.get(variant, 0.0) + term["times"]
    if asked["metric"].startswith(LOSS) or not any(times.values()) or not any(LOSS in row for row in rows):
        return None
    better = (asked["expected"] == "positive") == higher_is_better(asked["metric"])
    return decide(rows, LOSS, "negative" if better else "positive", asked["contrast"], OF_LOSS)


def decide(
    rows: Sequence[Row],
    metric: str,
    expected: str,
    contrast: Sequence[Mapping[str, Any]],
    outcomes: tuple[str, str] = OF_CLAIM,
) -> Verdict:
    """The sum of the terms, each ``times`` the metric's mean over the rows that match ``of``, for every seed.

    ``outcomes`` are the words for an interval beyond zero on the expected side, and on the other.
    """
    differences = {}
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed and metric in row]
        means = [_mean(own, metric, term["of"]) for term in contrast]
        known = [mean for mean in means if mean is not None]
        if len(known) == len(means):
            differences[seed] = float(sum(term["times"] * mean for term, mean in zip(contrast, known, strict=True)))
    said = " ".join(f"{_times(term['times'], first=not i)}({_of(term['of'])})" for i, term in enumerate(contrast))
    found = interval(list(differences.values())) if differences else None
    return Verdict(metric, expected, said, *_outcome(found, expected, outcomes), differences, found)


def _outcome(found: Interval | None, expected: str, outcomes: tuple[str, str]) -> tuple[str, str]:
    if found is None:
        return UNDECIDED, "no seed has this figure of all the points that are compared"
    if found.n == 1:
        return UNDECIDED, "one seed says nothing of others"
    if found.low is None or found.high is None:
        return UNDECIDED, "all seeds give the same figure, which says nothing of their spread"
    if found.low <= 0 <= found.high:
        return UNDECIDED, "the interval holds zero"
    if (found.low > 0) == (expected == "positive"):
        return outcomes[0], f"{expected}, as expected"
    return outcomes[1], f"{expected} was expected"


def _mean(rows: Sequence[Row], metric: str, of: Mapping[str, Any]) -> float | None:
    values = [row[metric] for row in rows if all(row.get(name) == value for name, value in of.items())]
    return float(np.mean(values)) if values and np.isfinite(values).all() else None


def _check(study: Study) -> None:
    asked, where = study.verdict, f"verdict of ablation={study.name}"
    if asked["expected"] not in ("positive", "negative"):
        raise UserError(f"{where}: expected={asked['expected']} must be positive or negative")
    there = {"variant": list(study.variants), **study.axes}
    for term in asked["contrast"]:
        for name, value in term["of"].items():
            if name not in there:
                raise UserError(f"{where}: contrast names {name}, which is none of {', '.join(there)}")
            if value not in there[name]:
                raise UserError(f"{where}: contrast names {name}={value}; there are {', '.join(map(str, there[name]))}")


def _times(times: float | int, *, first: bool) -> str:
    sign = "−" if times < 0 else "" if first else "+"
    size = "" if abs(times) == 1 else f"{abs(times):.4g} × "
    return f"{sign}{' ' * (bool(sign) and not first)}{size}"


def _of(of: Mapping[str, Any]) -> str:
    named = [str(value) if name == "variant" else f"{name.rpartition('.')[2]} {value}" for name, value in of.items()]
    return ", ".join(named) or "all"
