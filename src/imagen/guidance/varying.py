"""Classifier-free guidance whose weight varies: in an interval of log-SNR, along a curve over it, or by turns."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.guidance.base import Guidance, denoise_both, rewind
from imagen.types import Conditioning, Denoise, Prediction

WeightAt = Callable[[Float[Tensor, " b"]], Float[Tensor, " b"]]
"""Each example's weight at its log-SNR."""


class VaryingGuidance(Guidance):
    """Classifier-free guidance with each network call's own weight; where it is 1, no second half is computed.

    To know that it is 1 the host reads one number a call. On a GPU it so waits until the step before is done, and the
    GPU idles while the next call's first kernels are launched: far less than the half of a forward pass saved.
    """

    def __call__(self, denoise: Denoise) -> Denoise:
        weight_at = self.weight_at()

        def guided(x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning) -> Prediction:
            weight = weight_at(logsnr)
            if (weight == 1).all():
                return denoise(x_t, logsnr, cond)
            conditional, null = denoise_both(denoise, x_t, logsnr, cond)
            weight = weight[:, None, None, None].to(null.x0.dtype)
            # lerp gives its ends back to the bit: a weight of 1 among others is the conditional model
            return Prediction(torch.lerp(null.x0, conditional.x0, weight), gamma=conditional.gamma)

        return guided

    @abstractmethod
    def weight_at(self) -> WeightAt:
        """The weights of one sampling."""


class IntervalGuidance(VaryingGuidance):
    """``weight`` for log-SNR in [``logsnr_min``, ``logsnr_max``], elsewhere 1 (arXiv 2404.07724).

    The paper's noise level is ``sigma / alpha``: log-SNR is ``-2 ln`` of it.
    """

    def __init__(self, *, weight: float, logsnr_min: float, logsnr_max: float) -> None:
        if logsnr_min > logsnr_max:
            raise UserError(f"logsnr_min={logsnr_min} must be at most logsnr_max={logsnr_max}")
        self.weight = weight
        self.logsnr_min = logsnr_min
        self.logsnr_max = logsnr_max

    def weight_at(self) -> WeightAt:
        def weights(logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
            inside = (logsnr >= self.logsnr_min) & (logsnr <= self.logsnr_max)
            return torch.where(inside, self.weight, torch.ones_like(logsnr))

        return weights


class ScheduledGuidance(VaryingGuidance):
    """A weight for each of a list of increasing log-SNRs, linear in log-SNR between them, constant beyond the ends."""

    def __init__(self, *, logsnr: Sequence[float], weight: Sequence[float]) -> None:
        if not logsnr or len(logsnr) != len(weight):
            raise UserError(f"logsnr={list(logsnr)} and weight={list(weight)} must be equally long, of 1 point or more")
        if any(low >= high for low, high in pairwise(logsnr)):
            raise UserError(f"logsnr={list(logsnr)} must increase, from noisy to clean")
        self.logsnr = logsnr
        self.weight = weight

    def weight_at(self) -> WeightAt:
        return self._interpolated

    def _interpolated(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        weight = torch.full_like(logsnr, self.weight[0])
        for (low, high), end in zip(pairwise(self.logsnr), self.weight[1:], strict=True):
            along = ((logsnr - low) / (high - low)).clamp(0, 1)  # segments passed give their end, those ahead nothing
            weight = torch.lerp(weight, torch.full_like(logsnr, end), along)
        return weight


class OscillatingGuidance(VaryingGuidance):
    """``weight`` for ``num_constant_steps`` steps, then by turns ``low_weight`` and ``weight``, the low one first.

    Imagen Video (arXiv 2210.02303, section 2.6.2), whose weight (equation 5) is one less than Imagen's. A step's number
    is that of the noisier levels before it: both calls of a Heun step from one level share a weight, and a walk that
    jumps back takes its levels with the same weights again.
    """

    def __init__(self, *, weight: float, low_weight: float, num_constant_steps: int) -> None:
        if num_constant_steps < 0:
            raise UserError(f"num_constant_steps={num_constant_steps} must be at least 0")
        self.weight = weight
        self.low_weight = low_weight
        self.num_constant_steps = num_constant_steps

    def weight_at(self) -> WeightAt:
        past: list[tuple[Float[Tensor, " b"], None]] = []

        def weights(logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
            rewind(past, logsnr)
            turn = len(past) - self.num_constant_steps
            past.append((logsnr, None))
            return torch.full_like(logsnr, self.low_weight if turn >= 0 and turn % 2 == 0 else self.weight)

        return weights
