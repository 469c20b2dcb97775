"""What every guidance is, none of it, and the one forward pass that serves both its halves."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen.sampler import Sampler
from imagen.types import Conditioning, Denoise, Prediction

FindDenoiser = Callable[[str], Callable[[], nn.Module]]
"""Looks at a run folder or an exported ``.safetensors`` whether it fits, and tells how to load its averaged denoiser.

What is loaded is a ``Denoise`` in evaluation mode.
"""

Combine = Callable[[Float[Tensor, " b"], Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]], Prediction]
"""The conditional x0 and the null one at their log-SNR, made into the guided prediction."""

T = TypeVar("T")


def rewind(past: list[tuple[Float[Tensor, " b"], T]], logsnr: Float[Tensor, " b"]) -> None:
    """Forget of what a guidance noted of its walk, each note with its level, all that ``logsnr`` does not come after.

    What is left is of noisier levels. So a step of two network calls is noted once, with churn too, and where a walk
    jumps back to noisier levels, what it noted beyond them is gone.
    """
    while past and not (past[-1][0] < logsnr).all():
        past.pop()


class Guidance(ABC):
    """A wrapper of denoisers. It is put around one for one sampling, and may take notes of its walk (``rewind``)."""

    @property
    def reads_null(self) -> bool:
        """Whether it asks what the denoiser makes of no text, in whose place a negative prompt comes."""
        return True

    def check(self, sampler: Sampler, picked: str) -> None:
        """Called before any network is built; ``picked`` is how the user picks the sampler.

        Raises: UserError if such a sampler does not do what it asks for.
        """

    def find(self, find_denoiser: FindDenoiser) -> None:
        """Look for what it needs beside the stage's own denoiser, if anything, when the stage is built."""

    def to(self, device: torch.device | str) -> None:
        """Called before each sampling: load what was found, once, and move it."""

    @abstractmethod
    def __call__(self, denoise: Denoise) -> Denoise:
        """The guided denoiser."""


class NoGuidance(Guidance):
    """The denoiser itself."""

    @property
    def reads_null(self) -> bool:
        return False

    def __call__(self, denoise: Denoise) -> Denoise:
        return denoise


class TwoHalves(Guidance):
    """Guidance that sets the conditional prediction against the null one, both from one forward pass.

    At ``weight`` 1 it is the conditional model, and no second half is computed. A learned variance is the conditional
    half's.
    """

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    @property
    def reads_null(self) -> bool:
        return self.weight != 1

    def __call__(self, denoise: Denoise) -> Denoise:
        if not self.reads_null:
            return denoise
        combine = self.combiner()

        def guided(x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning) -> Prediction:
            conditional, null = denoise_both(denoise, x_t, logsnr, cond)
            return replace(combine(logsnr, conditional.x0, null.x0), gamma=conditional.gamma)

        return guided

    @abstractmethod
    def combiner(self) -> Combine:
        """How one sampling makes both halves' x0 into one prediction."""


def denoise_both(
    denoise: Denoise, x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning
) -> tuple[Prediction, Prediction]:
    """The conditional and the null prediction of the same ``x_t``, from one forward pass of batch 2b."""
    both = denoise(torch.cat([x_t, x_t]), torch.cat([logsnr, logsnr]), cond.concatenated(cond.null_text()))
    return _rows(both, slice(None, len(x_t))), _rows(both, slice(len(x_t), None))


def _rows(prediction: Prediction, rows: slice) -> Prediction:
    def cut(values: Float[Tensor, "b 3 h w"] | None) -> Float[Tensor, "half 3 h w"] | None:
        return None if values is None else values[rows]

    return Prediction(prediction.x0[rows], cut(prediction.renoise_x0), cut(prediction.gamma))
