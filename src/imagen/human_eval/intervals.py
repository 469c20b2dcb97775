"""A share with its interval, where the answers of one rater resemble each other.

Wilson's score interval (Wilson 1927) with the effective number of answers (Kish 1965; Dean and Pagano 2015): what the
variance between raters leaves of the number of answers, at least the number of raters. With Student's t for as many
raters, since that variance is estimated from them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Shaped

LEVEL = 0.95


@dataclass(frozen=True)
class Share:
    """A share of n answers, from 0 to 1, and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def share(hits: Bool[np.ndarray, " n"], raters: Shaped[np.ndarray, " n"]) -> Share:
    """The share of ``hits``; ``raters`` names whose each is. One rater says nothing of others: from 0 to 1.

    No answers at all: the share is not a number, the interval from 0 to 1.
    """
    from scipy.stats import t as student

    if not len(hits):
        return Share(float("nan"), 0.0, 1.0)
    value = float(hits.mean())
    _, rater = np.unique(raters, return_inverse=True)
    count = int(rater.max()) + 1
    if count == 1:
        return Share(value, 0.0, 1.0)
    effective = _effective(hits, rater, count)
    t = float(student.ppf((1 + LEVEL) / 2, count - 1))
    centre = (value + t**2 / (2 * effective)) / (1 + t**2 / effective)
    half = t * np.sqrt(value * (1 - value) / effective + t**2 / (4 * effective**2)) / (1 + t**2 / effective)
    return Share(value, max(0.0, centre - float(half)), min(1.0, centre + float(half)))


def _effective(hits: np.ndarray, rater: np.ndarray, count: int) -> float:
    """As many independent answers would vary as much; where all agree, a rater counts as one answer."""
    value, n = hits.mean(), len(hits)
    independent = value * (1 - value)
    if independent == 0:
        return float(count)
    sums = np.bincount(rater, hits - value, minlength=count)
    variance = count / (count - 1) * float((sums**2).sum()) / n**2
    return float(min(n, max(count, independent / variance if variance else n)))
