"""Noise schedules: the map between time t in [0, 1] and log-SNR, and what a log-SNR means for pictures.

``logsnr = log(alpha^2 / sigma^2)`` with ``alpha^2 + sigma^2 = 1`` is the only clock of the package. With t ~ U(0, 1) a
schedule is also the training density: any quantile function of log-SNR is a schedule.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError


def alpha_sigma(logsnr: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Signal and noise amplitudes of a log-SNR; infinite ones give exactly (1, 0) and (0, 1). Imagen, appendix A."""
    return logsnr.sigmoid().sqrt(), (-logsnr).sigmoid().sqrt()


def diffuse(
    x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], logsnr: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """``x_t = alpha x0 + sigma noise``, each example at its own log-SNR. Imagen, appendix A."""
    alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
    return alpha * x0 + sigma * noise


def renoise(
    x: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], here: Float[Tensor, " b"], there: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """x_t from x at a cleaner level: the forward process from log-SNR ``here`` down to ``there`` <= ``here``.

    ``here`` may be infinite (a picture), which is ``diffuse``. RePaint's jump back, arXiv 2201.09865, equation 1.
    """
    (alpha_here, _), (alpha, sigma) = (alpha_sigma(logsnr[:, None, None, None]) for logsnr in (here, there))
    fresh = -torch.expm1(there - here)[:, None, None, None]  # the share of the variance at `there` that is new
    return alpha / alpha_here * x + sigma * fresh.sqrt() * noise


class NoiseSchedule(ABC):
    """A strictly decreasing map from t in [0, 1] (clean to noise) to log-SNR, with its inverse.

    A subclass states the ideal curve, whose ends may be infinite. Time is then rescaled to the piece of it between the
    bounds: ``logsnr(0) = logsnr_max``, ``logsnr(1) = logsnr_min``, and no stretch of it is flat, as clipping would make
    it. A curve that ends by itself inside the bounds (the linear one, at -10.05) keeps its own end. As a density of
    training, truncation is conditioning: what lay beyond the bounds is spread over what is between them.
    """

    def __init__(self, *, logsnr_min: float, logsnr_max: float) -> None:
        if not -math.inf < logsnr_min < logsnr_max < math.inf:
            raise UserError(
                f"logsnr_min={logsnr_min} must be finite and below logsnr_max={logsnr_max}, e.g. -20 and 20."
            )
        # on the CPU even where a model is built on the meta device: these are numbers, not weights
        ends = torch.tensor([logsnr_max, logsnr_min], dtype=torch.float64, device="cpu")
        self._start, self._end = _solve(self._ideal, ends).tolist()

    @abstractmethod
    def _ideal(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The curve before truncation: strictly decreasing on (0, 1), infinite ends allowed; t is float64."""

    def _truncated(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self._ideal(self._start + t * (self._end - self._start))

    def logsnr(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Log-SNR at times t in [0, 1], in t's dtype."""
        # in float64 because 1 - t, on which the noisy end hangs, is gone in float32
        return self._truncated(t.double()).to(t.dtype)

    def t(self, logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The time at which the schedule has this log-SNR, in its dtype; beyond the ends, the nearer of 0 and 1."""
        return _solve(self._truncated, logsnr.double()).to(logsnr.dtype)


def _solve(
    curve: Callable[[Float[Tensor, "*shape"]], Float[Tensor, "*shape"]], value: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Where in [0, 1] a decreasing curve takes each value, by bisection to the last bit of float64."""
    low, high = torch.zeros_like(value), torch.ones_like(value)
    for _ in range(80):
        middle = (low + high) / 2
        above = curve(middle) > value
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2


def _cosine(t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return -2 * torch.log(torch.tan(math.pi / 2 * t))


def _shift(base_resolution: int, resolution: int) -> float:
    if base_resolution < 1 or resolution < 1:
        raise UserError(f"base_resolution={base_resolution} and resolution={resolution} must be positive pixel counts.")
    return 2 * math.log(base_resolution / resolution)


class CosineSchedule(NoiseSchedule):
    """``alpha = cos(pi t / 2)``: Imagen's base and 64-to-256 stages (appendix F).

    Improved DDPM (arXiv 2102.09672, equation 17) with s = 0: its s = 0.008 only keeps the first level from being too
    clean, which ``logsnr_max`` does here.
    """

    def _ideal(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return _cosine(t)


class LinearSchedule(NoiseSchedule):
    """DDPM's betas 1e-4 to 0.02 in continuous time: ``alpha^2 = exp(-(0.1 t + 9.95 t^2))``, Imagen's 256-to-1024 stage.

    The thousand-step product of (1 - beta) in the limit of many steps (arXiv 2011.13456, appendix C); ends at -10.05.
    """

    def _ideal(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return -torch.log(torch.expm1(0.1 * t + 9.95 * t**2))


class ShiftedCosineSchedule(NoiseSchedule):
    """The cosine curve moved by ``2 log(base_resolution / resolution)``: more noise on larger pictures.

    Averaging pixels raises the SNR: a picture of ``resolution``, shrunk to ``base_resolution``, then has the plain
    cosine schedule. The bounds are those of the shifted curve. Simple diffusion, arXiv 2301.11093.
    """

    def __init__(self, *, resolution: int, base_resolution: int, logsnr_min: float, logsnr_max: float) -> None:
        self._shift = _shift(base_resolution, resolution)
        super().__init__(logsnr_min=logsnr_min, logsnr_max=logsnr_max)

    def _ideal(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return _cosine(t) + self._shift


class InterpolatedCosineSchedule(NoiseSchedule):
    """Shifted cosine whose base moves in t from ``base_resolution_clean`` (t = 0) to ``base_resolution_noise`` (t = 1).

    A small base at the noisy end settles the composition, a large one at the clean end leaves time for detail.
    Simple diffusion, arXiv 2301.11093. UserError if the noisy base is the larger one.
    """

    def __init__(
        self,
        *,
        resolution: int,
        base_resolution_clean: int,
        base_resolution_noise: int,
        logsnr_min: float,
        logsnr_max: float,
    ) -> None:
        if base_resolution_noise > base_resolution_clean:
            raise UserError(
                f"base_resolution_noise={base_resolution_noise} must not exceed "
                f"base_resolution_clean={base_resolution_clean}; swap the two."
            )
        self._shift_clean = _shift(base_resolution_clean, resolution)
        self._shift_noise = _shift(base_resolution_noise, resolution)
        super().__init__(logsnr_min=logsnr_min, logsnr_max=logsnr_max)

    def _ideal(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return _cosine(t) + (1 - t) * self._shift_clean + t * self._shift_noise


class LogNormalSchedule(NoiseSchedule):
    """``ln(sigma / alpha) ~ N(mean, std^2)``: the training density of EDM, and of flow matching's logit-normal times.

    EDM (arXiv 2206.00364, table 1) draws the logarithm of its noise's standard deviation ``sigma / alpha`` so. Flow
    matching (arXiv 2403.03206, section 3.1) draws the logit of its time ``sigma / (alpha + sigma)`` so; since the logit
    of that time is ``ln(sigma / alpha)``, the two are one family. The curve is the normal quantile function; it ends by
    itself 8.2 standard deviations from its mean, where float64 has no more times.
    """

    def __init__(self, *, mean: float, std: float, logsnr_min: float, logsnr_max: float) -> None:
        if not (-math.inf < mean < math.inf and 0 < std < math.inf):
            raise UserError(f"mean={mean} must be a number and std={std} a positive one.")
        self._mean, self._std = mean, std
        super().__init__(logsnr_min=logsnr_min, logsnr_max=logsnr_max)

    def _ideal(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        # 2^-53 is the distance from 1 of the last time before it; the other end is cut alike
        return -2 * (self._mean + self._std * torch.special.ndtri(t.clamp(2**-53, 1 - 2**-53)))


class SigmoidSchedule(NoiseSchedule):
    """``alpha^2`` falls from 1 to 0 as a sigmoid does between ``start`` and ``end``, at temperature ``tau``.

    ``alpha^2 = (S(end) - S(x)) / (S(end) - S(start))`` with ``S(x) = sigmoid(x / tau)`` and x from start to end in t
    (arXiv 2301.10972, algorithm 1, whose clipping of ``alpha^2`` at 1e-9 is ``logsnr_min`` here). A far ``start`` and
    ``end`` make log-SNR nearly linear in t between ``-start / tau`` and ``-end / tau``.
    """

    def __init__(self, *, start: float, end: float, tau: float, logsnr_min: float, logsnr_max: float) -> None:
        if not -math.inf < start < end < math.inf:
            raise UserError(f"start={start} must be a number below end={end}, e.g. -3 and 3.")
        if not 0 < tau < math.inf:
            raise UserError(f"tau={tau} must be a positive number.")
        self._first, self._last = start / tau, end / tau
        super().__init__(logsnr_min=logsnr_min, logsnr_max=logsnr_max)

    def _ideal(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        # S(a) - S(b) = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)), in the ratio alpha^2 / sigma^2: nothing cancels
        half = (self._last - self._first) / 2
        level = math.cosh(self._first / 2) / math.cosh(self._last / 2)
        return torch.log(torch.sinh((1 - t) * half) / torch.sinh(t * half)) + math.log(level)
