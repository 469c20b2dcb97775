"""Thresholding wraps a denoiser: its x0 is brought back to [-1, 1], where pictures are.

It acts on the guided x0 at every network call, before the sampler derives epsilon from it (Imagen, section 2.3).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.types import Conditioning, Denoise, Prediction


class Threshold(ABC):
    """A wrapper of denoisers, to be put around guidance."""

    @abstractmethod
    def __call__(self, denoise: Denoise) -> Denoise:
        """The denoiser with its x0 thresholded."""


class NoThreshold(Threshold):
    """The denoiser itself."""

    def __call__(self, denoise: Denoise) -> Denoise:
        return denoise


class StaticThreshold(Threshold):
    """Clips x0 to [-1, 1] (Imagen, section 2.3)."""

    def __call__(self, denoise: Denoise) -> Denoise:
        return _on_x0(denoise, lambda x0: x0.clamp(-1, 1))


class DynamicThreshold(Threshold):
    """Clips each example's x0 to [-s, s] and divides by s, where s = max(1, the percentile of its own |x0|).

    ``percentile`` in (0, 1] is taken over all pixels and channels: 0.995 in Imagen (section 2.3 and figure A.10), where
    strong guidance would otherwise saturate colours. s is at most ``cap``, so that a wild prediction does not grey the
    picture (DeepFloyd IF's form; 1 is the static threshold, None no cap). A picture in [-1, 1] is left bit for bit.
    """

    def __init__(self, *, percentile: float, cap: float | None) -> None:
        if not 0 < percentile <= 1:
            raise UserError(f"percentile={percentile} must be above 0 and at most 1, e.g. 0.995.")
        if cap is not None and cap < 1:
            raise UserError(f"cap={cap} must be at least 1, the range of pictures, or null for none.")
        self.percentile = percentile
        self.cap = cap

    def __call__(self, denoise: Denoise) -> Denoise:
        return _on_x0(denoise, self._clip)

    def _clip(self, x0: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        s = quantile(x0.abs().flatten(1).float(), self.percentile).to(x0.dtype)
        s = s.clamp(1, self.cap)[:, None, None, None]
        return x0.clamp(-s, s) / s


def quantile(values: Float[Tensor, "b n"], q: float) -> Float[Tensor, " b"]:
    """Each row's quantile, with linear interpolation as ``torch.quantile``, but of rows of any length and faster.

    Sorting a megapixel for its upper half percent costs ten times what taking that half percent does.
    """
    rank = q * (values.shape[1] - 1)
    top = values.topk(values.shape[1] - math.floor(rank), dim=1).values
    return torch.lerp(top[:, -1], top[:, -2 if top.shape[1] > 1 else -1], rank - math.floor(rank))


def _on_x0(denoise: Denoise, clip: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b 3 h w"]]) -> Denoise:
    def thresholded(x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning) -> Prediction:
        prediction = denoise(x_t, logsnr, cond)
        return replace(prediction, x0=clip(prediction.x0))

    return thresholded
