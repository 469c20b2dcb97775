"""How sure a mean is: Student's interval (Student 1908), each seed one observation, or of one seed each place."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean of ``n`` values and the bounds of its interval; without bounds where they cannot be told."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def bounds(self) -> str:
        """The interval in words; '' without bounds."""
        if self.low is None or self.high is None:
            return ""
        return f"{LEVEL:.0%} interval [{self.low:+.4g}, {self.high:+.4g}]"


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """``mean ± t((1 + level) / 2, n - 1) s / sqrt(n)``, for values that are independent and about normal.

    One value says nothing of others, and values that are all equal nothing of their spread: such have no bounds.
    """
    n, mean = len(values), float(np.mean(values))
    deviation = float(np.std(values, ddof=1)) if n > 1 else 0.0
    if deviation <= 1e-12 * abs(mean):
        return Interval(mean, None, None, n)
    half = _quantile((1 + level) / 2, n - 1) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


@cache
def _quantile(share: float, freedom: int) -> float:
    from scipy.stats import t as student

    return float(student.ppf(share, freedom))
