"""What is done to the low-resolution picture before a super-resolution network sees it, in training and at sampling.

The corruption hides how real pictures differ from the earlier stage's, and its strength, a level in [0, 1], is told to
the network as a log-SNR (Imagen, section 2.4; Cascaded Diffusion, arXiv 2106.15282).
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.schedule import NoiseSchedule, diffuse


class ConditioningAugmentation(ABC):
    """How a low-resolution picture is corrupted at a level, and how levels are drawn in training."""

    @abstractmethod
    def train_level(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Training levels, from u ~ U(0, 1)."""

    @abstractmethod
    def __call__(
        self, low_res: Float[Tensor, "b 3 hl wl"], level: Float[Tensor, " b"], noise: Float[Tensor, "b 3 hl wl"]
    ) -> tuple[Float[Tensor, "b 3 hl wl"], Float[Tensor, " b"]]:
        """The corrupted picture and the log-SNR that tells the network how corrupt it is; noise is standard normal."""


class GaussianAugmentation(ConditioningAugmentation):
    """Variance-preserving noise: ``level`` is the time of its own schedule, drawn from U(0, level_max) in training.

    Imagen, section 2.4 and figure A.32, with level_max 1. The paper leaves the schedule unsaid.
    """

    def __init__(self, schedule: NoiseSchedule, *, level_max: float) -> None:
        if not 0 < level_max <= 1:
            raise UserError(f"level_max={level_max} must be above 0 and at most 1.")
        self.schedule = schedule
        self.level_max = level_max

    def train_level(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return self.level_max * u

    def __call__(
        self, low_res: Float[Tensor, "b 3 hl wl"], level: Float[Tensor, " b"], noise: Float[Tensor, "b 3 hl wl"]
    ) -> tuple[Float[Tensor, "b 3 hl wl"], Float[Tensor, " b"]]:
        logsnr = self.schedule.logsnr(level)
        return diffuse(low_res, noise, logsnr), logsnr


class NoAugmentation(ConditioningAugmentation):
    """The picture as it is, at every level; the network is told the schedule's cleanest log-SNR."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def train_level(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return torch.zeros_like(u)

    def __call__(
        self, low_res: Float[Tensor, "b 3 hl wl"], level: Float[Tensor, " b"], noise: Float[Tensor, "b 3 hl wl"]
    ) -> tuple[Float[Tensor, "b 3 hl wl"], Float[Tensor, " b"]]:
        return low_res, self.schedule.logsnr(torch.zeros_like(level))
