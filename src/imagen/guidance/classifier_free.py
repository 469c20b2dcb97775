"""Classifier-free guidance with one weight for all of sampling."""

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.guidance.base import Combine, TwoHalves
from imagen.types import Prediction


class ClassifierFreeGuidance(TwoHalves):
    """``x0 = null + weight (conditional - null)``, both from one forward pass of twice the batch (arXiv 2207.12598).

    The weight is Imagen's (section 2.2): 1 is the plain conditional model, with no second half computed, 0 ignores the
    prompt; the paper sweeps 1 to 18.
    """

    def combiner(self) -> Combine:
        return self._guided

    def _guided(
        self, logsnr: Float[Tensor, " b"], conditional: Float[Tensor, "b 3 h w"], null: Float[Tensor, "b 3 h w"]
    ) -> Prediction:
        return Prediction(torch.lerp(null, conditional, self.weight))
