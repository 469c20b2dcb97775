"""How a sampler's steps are spread over the noise levels: the grid of log-SNRs that sampling visits."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.schedule import NoiseSchedule


class Spacing(ABC):
    """Lays a grid over a schedule's range of log-SNR."""

    def grid(self, schedule: NoiseSchedule, num_steps: int) -> Float[Tensor, " s"]:
        """``num_steps + 1`` log-SNRs from pure noise to clean, in float64 on the CPU.

        The last is infinite: a finished picture is x0 itself, however early the schedule was truncated for training.
        """
        finished = torch.tensor([math.inf], dtype=torch.float64, device="cpu")
        return torch.cat([self._logsnr(schedule, num_steps), finished])

    @abstractmethod
    def _logsnr(self, schedule: NoiseSchedule, num_steps: int) -> Float[Tensor, " n"]:
        """The ``num_steps`` log-SNRs at which steps begin, in float64 on the CPU; the first is the schedule's least."""


class UniformTime(Spacing):
    """Times evenly spaced from 1 to 0 (Imagen, appendix A)."""

    def _logsnr(self, schedule: NoiseSchedule, num_steps: int) -> Float[Tensor, " n"]:
        return schedule.logsnr(_even(1.0, 0.0, num_steps + 1)[:-1])


class UniformLogSNR(Spacing):
    """Log-SNRs evenly spaced over the schedule's whole range (DPM-Solver, arXiv 2206.00927, section 3.3).

    The range should be that of what there is to see: between -20 and 20 most steps are pure noise or finished pictures.
    """

    def _logsnr(self, schedule: NoiseSchedule, num_steps: int) -> Float[Tensor, " n"]:
        return _even(*_ends(schedule), num_steps)


class Karras(Spacing):
    """``(sigma / alpha)^(1 / rho)`` evenly spaced over the schedule's whole range (EDM, arXiv 2206.00364, equation 5).

    ``rho`` above 0 is 7 in EDM; the larger, the more of the steps are near the clean end, up to ``UniformLogSNR``.
    """

    def __init__(self, *, rho: float) -> None:
        if not 0 < rho < math.inf:
            raise UserError(f"rho={rho} must be above 0 and finite, e.g. 7; its limit is spacing=uniform_logsnr.")
        self.rho = rho

    def _logsnr(self, schedule: NoiseSchedule, num_steps: int) -> Float[Tensor, " n"]:
        noise, clean = (math.exp(-logsnr / (2 * self.rho)) for logsnr in _ends(schedule))
        return -2 * self.rho * _even(noise, clean, num_steps).log()


def _ends(schedule: NoiseSchedule) -> tuple[float, float]:
    """The schedule's range of log-SNR, from noise to clean."""
    noise, clean = schedule.logsnr(_even(1.0, 0.0, 2)).tolist()
    return noise, clean


def _even(start: float, end: float, count: int) -> Float[Tensor, " n"]:
    return torch.linspace(start, end, count, dtype=torch.float64, device="cpu")
