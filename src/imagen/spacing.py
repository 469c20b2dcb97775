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
        """The ``num_steps`` log-SNRs at which steps begin, in float64 on the CPU, noisiest first."""


class UniformTime(Spacing):
    """Times evenly spaced from 1 to 0 (Imagen, appendix A)."""

    def _logsnr(self, schedule: NoiseSchedule, num_steps: int) -> Float[Tensor, " n"]:
        return schedule.logsnr(_even(1.0, 0.0, num_steps + 1)[:-1])


class _Ranged(Spacing):
    """Spacing over what of a schedule lies between two log-SNRs.

    Between -20 and 20 most steps would be pure noise or finished pictures: such a spacing wants the range in which
    there is something to see, EDM's -8.76 to 12.43 (sigma from 80 to 0.002).
    """

    def __init__(self, *, logsnr_min: float, logsnr_max: float) -> None:
        if not logsnr_min < logsnr_max:
            raise UserError(f"logsnr_min={logsnr_min} must be below logsnr_max={logsnr_max}, e.g. -8.76 and 12.43.")
        self.logsnr_min, self.logsnr_max = logsnr_min, logsnr_max

    def _ends(self, schedule: NoiseSchedule) -> tuple[float, float]:
        """The range of log-SNR, from noise to clean."""
        noise, clean = schedule.logsnr(_even(1.0, 0.0, 2)).tolist()
        noise, clean = max(noise, self.logsnr_min), min(clean, self.logsnr_max)
        if not noise < clean:
            raise UserError(
                f"spacing.logsnr_min={self.logsnr_min} and spacing.logsnr_max={self.logsnr_max} leave nothing of the "
                "schedule's own range: widen them"
            )
        return noise, clean


class UniformLogSNR(_Ranged):
    """Log-SNRs evenly spaced (DPM-Solver, arXiv 2206.00927, section 3.3)."""

    def _logsnr(self, schedule: NoiseSchedule, num_steps: int) -> Float[Tensor, " n"]:
        return _even(*self._ends(schedule), num_steps)


class Karras(_Ranged):
    """``(sigma / alpha)^(1 / rho)`` evenly spaced (EDM, arXiv 2206.00364, equation 5).

    ``rho`` above 0 is 7 in EDM; the larger, the more of the steps are near the clean end, up to ``UniformLogSNR``.
    """

    def __init__(self, *, rho: float, logsnr_min: float, logsnr_max: float) -> None:
        super().__init__(logsnr_min=logsnr_min, logsnr_max=logsnr_max)
        if not 0 < rho < math.inf:
            raise UserError(f"rho={rho} must be above 0 and finite, e.g. 7; its limit is spacing=uniform_logsnr.")
        self.rho = rho

    def _logsnr(self, schedule: NoiseSchedule, num_steps: int) -> Float[Tensor, " n"]:
        noise, clean = (math.exp(-logsnr / (2 * self.rho)) for logsnr in self._ends(schedule))
        return -2 * self.rho * _even(noise, clean, num_steps).log()


def _even(start: float, end: float, count: int) -> Float[Tensor, " n"]:
    return torch.linspace(start, end, count, dtype=torch.float64, device="cpu")
