"""Classifier-free guidance with one weight for all of sampling."""

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.guidance.base import Guidance, denoise_both
from imagen.types import Conditioning, Denoise, Prediction


class ClassifierFreeGuidance(Guidance):
    """``x0 = null + weight (conditional - null)``, both from one forward pass of twice the batch (arXiv 2207.12598).

    The weight is Imagen's (section 2.2): 1 is the plain conditional model, with no second half computed, 0 ignores the
    prompt; the paper sweeps 1 to 18. A learned variance is the conditional half's.
    """

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    @property
    def reads_null(self) -> bool:
        return self.weight != 1

    def __call__(self, denoise: Denoise) -> Denoise:
        if self.weight == 1:
            return denoise

        def guided(x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning) -> Prediction:
            conditional, null = denoise_both(denoise, x_t, logsnr, cond)
            return Prediction(torch.lerp(null.x0, conditional.x0, self.weight), gamma=conditional.gamma)

        return guided
