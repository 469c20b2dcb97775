"""Two runs' values compared place by place: what is hard for both cancels."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from imagen.errors import UserError


@dataclass(frozen=True)
class Paired:
    """``differences`` at the ``n`` places where both values are finite; their mean and its standard error.

    The error takes places for independent; it is NaN of fewer than two. It says nothing of other trainings of the same
    settings: that takes seeds.
    """

    differences: Float[np.ndarray, " n"]

    @property
    def n(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        return float(self.differences.mean()) if self.n else math.nan

    @property
    def error(self) -> float:
        return float(self.differences.std(ddof=1)) / math.sqrt(self.n) if self.n > 1 else math.nan


def paired_difference(values_a: Float[np.ndarray, " p"], values_b: Float[np.ndarray, " _"]) -> Paired:
    """``values_a - values_b`` where both are finite, of one name in two points' ``values.npz``.

    A value is NaN where nothing was to be measured: a mean over all that one run has is not that of what the other has.

    Raises: UserError if they are not as many, and so of other pictures.
    """
    if len(values_a) != len(values_b):
        raise UserError(
            f"values of {len(values_a)} and {len(values_b)} places are not of the same pictures: measure both against "
            "the same data, with the same settings of the metric"
        )
    both = np.isfinite(values_a) & np.isfinite(values_b)
    return Paired(np.asarray(values_a, dtype=np.float64)[both] - np.asarray(values_b, dtype=np.float64)[both])
