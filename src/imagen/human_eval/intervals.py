"""A share with its interval, where the answers of one rater resemble each other.

Wilson's score interval (Wilson 1927) with the effective number of answers (Kish 1965; Dean and Pagano 2015): as many
independent ones would vary as much. A share of all answers is the mean of the raters' own shares, weighed by how much
each has answered; raters are of one population, whatever that is, so its variance is that between raters times the sum
of the squared weights, whose inverse is Kish's effective number of raters. With Student's t for as many raters, since
that variance is estimated from them.
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
    _, rater, answers = np.unique(raters, return_inverse=True, return_counts=True)
    if len(answers) == 1:
        return Share(value, 0.0, 1.0)
    effective = _effective(value, np.bincount(rater, hits) / answers, answers)
    t = float(student.ppf((1 + LEVEL) / 2, len(answers) - 1))
    centre = (value + t**2 / (2 * effective)) / (1 + t**2 / effective)
    half = t * np.sqrt(value * (1 - value) / effective + t**2 / (4 * effective**2)) / (1 + t**2 / effective)
    return Share(value, max(0.0, centre - float(half)), min(1.0, centre + float(half)))


def _effective(value: float, own: np.ndarray, answers: np.ndarray) -> float:
    """How many independent answers vary as much as a mean of ``own`` shares; at least Kish's number of raters.

    So few there are where all agree, and their variance cannot be known.
    """
    n, squares = answers.sum(), float(((answers / answers.sum()) ** 2).sum())
    independent, variance = value * (1 - value), float(own.var(ddof=1)) * squares
    if independent == 0:
        return 1 / squares
    return float(np.clip(independent / variance if variance else n, 1 / squares, n))
