"""Classifier-free guidance that keeps the conditional prediction's contrast."""

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.guidance.base import Combine, TwoHalves
from imagen.types import Prediction


class RescaledGuidance(TwoHalves):
    """Guided, then scaled to the conditional half's standard deviation, by the part ``phi`` in [0, 1].

    arXiv 2305.08891, section 3.4; 0 is plain classifier-free guidance. The paper scales its
    network's output, v; here it is x0, so that one setting means the same for every parameterization, and because what
    guidance overexposes is the picture. At pure noise, where v = -x0, both are the same.
    """

    def __init__(self, *, weight: float, phi: float) -> None:
        if not 0 <= phi <= 1:
            raise UserError(f"phi={phi} must be between 0 (no rescaling) and 1")
        super().__init__(weight=weight)
        self.phi = phi

    def combiner(self) -> Combine:
        return self._guided

    def _guided(
        self, logsnr: Float[Tensor, " b"], conditional: Float[Tensor, "b 3 h w"], null: Float[Tensor, "b 3 h w"]
    ) -> Prediction:
        x0 = torch.lerp(null, conditional, self.weight)
        return Prediction(x0 * (1 + self.phi * (_contrast(conditional) / _contrast(x0) - 1)))


def _contrast(x0: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 1 1"]:
    """Each example's standard deviation over all its pixels and channels, kept from 0 for a picture of one colour."""
    return x0.std(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(x0.dtype).eps)
