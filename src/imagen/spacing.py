"""How a sampler's steps are spread over the noise levels: the grid of log-SNRs that sampling visits."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.schedule import NoiseSchedule


class Spacing(ABC):
    """Lays a grid over a schedule's range of log-SNR."""

    def grid(self, schedule: NoiseSchedule, num_steps: int) -> Float[Tensor, " s"]:
        """``num_steps + 1`` log-SNRs from pure noise to clean, in float64 on the CPU.

        The last is infinite: a finished picture is x0 itself, however early the schedule was truncated for training.
        """
        fraction = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64, device="cpu")
        grid = self._logsnr(schedule, fraction)
        grid[-1] = math.inf
        return grid

    @abstractmethod
    def _logsnr(self, schedule: NoiseSchedule, fraction: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        """The log-SNRs at even fractions from 1 (noise) to 0 (clean)."""


class UniformTime(Spacing):
    """Times evenly spaced from 1 to 0 (Imagen, appendix A)."""

    def _logsnr(self, schedule: NoiseSchedule, fraction: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        return schedule.logsnr(fraction)
