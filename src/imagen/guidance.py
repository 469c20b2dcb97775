"""Guidance wraps a denoiser: the same signature, its x0 pulled towards the prompt.

Affine combinations of x0 and of epsilon are the same thing, so guidance speaks of x0 alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen.types import Conditioning, Denoise, Prediction

LoadDenoiser = Callable[[str], nn.Module]
"""The averaged denoiser, in evaluation mode, of a run folder or an exported ``.safetensors``; it is a ``Denoise``."""


class Guidance(ABC):
    """A wrapper of denoisers. It is put around one for one sampling, and may keep count of its steps."""

    def load(self, load_denoiser: LoadDenoiser) -> None:
        """Load what it needs beside the stage's own denoiser, if anything, when the stage is built."""

    def to(self, device: torch.device | str) -> None:
        """Move what was loaded."""

    @abstractmethod
    def __call__(self, denoise: Denoise) -> Denoise:
        """The guided denoiser."""


class NoGuidance(Guidance):
    """The denoiser itself."""

    def __call__(self, denoise: Denoise) -> Denoise:
        return denoise


class ClassifierFreeGuidance(Guidance):
    """``x0 = null + weight (conditional - null)``, both from one forward pass of twice the batch.

    The weight is Imagen's (section 2.2): 1 is the plain conditional model, with no second half computed, 0 ignores the
    prompt; the paper sweeps 1 to 18. The null half sees zeroed text and the same low-resolution picture.
    """

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(self, denoise: Denoise) -> Denoise:
        if self.weight == 1:
            return denoise

        def guided(x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning) -> Prediction:
            conditional, null = denoise_both(denoise, x_t, logsnr, cond, cond.null_text())
            x0 = null.x0 + self.weight * (conditional.x0 - null.x0)
            return Prediction(x0, gamma=conditional.gamma)

        return guided


def denoise_both(
    denoise: Denoise,
    x_t: Float[Tensor, "b 3 h w"],
    logsnr: Float[Tensor, " b"],
    first: Conditioning,
    second: Conditioning,
) -> tuple[Prediction, Prediction]:
    """The predictions under two conditionings of the same ``x_t``, from one forward pass of batch 2b."""
    both = denoise(torch.cat([x_t, x_t]), torch.cat([logsnr, logsnr]), first.concatenated(second))
    return _rows(both, slice(None, len(x_t))), _rows(both, slice(len(x_t), None))


def _rows(prediction: Prediction, rows: slice) -> Prediction:
    def cut(values: Float[Tensor, "b 3 h w"] | None) -> Float[Tensor, "half 3 h w"] | None:
        return None if values is None else values[rows]

    return Prediction(prediction.x0[rows], cut(prediction.renoise_x0), cut(prediction.gamma))
