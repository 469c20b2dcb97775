"""Guidance that stays on the data: guided x0, but the null half's noise."""

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.guidance.base import Guidance, denoise_both
from imagen.types import Conditioning, Denoise, Prediction


class CFGPlusPlus(Guidance):
    """CFG++ (arXiv 2406.08070, algorithm 2): x0 interpolated between both halves, re-noised with the null half's noise.

    ``weight`` in [0, 1]: 0 is the plain null model, 1 the conditional x0 with the null noise. With DDIM, a step from
    log-SNR l to l' is classifier-free guidance of weight ``weight / (1 - exp((l - l') / 2))``. The noise is a sampler's
    to put back (``Prediction.renoise_x0``); thresholds act on x0 alone.
    """

    def __init__(self, *, weight: float) -> None:
        if not 0 <= weight <= 1:
            raise UserError(
                f"weight={weight} does not go with CFG++, which interpolates: it must be between 0 and 1, e.g. 0.6; "
                "guidance=classifier_free takes larger ones"
            )
        self.weight = weight

    def __call__(self, denoise: Denoise) -> Denoise:
        def guided(x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning) -> Prediction:
            conditional, null = denoise_both(denoise, x_t, logsnr, cond)
            x0 = torch.lerp(null.x0, conditional.x0, self.weight)
            return Prediction(x0, renoise_x0=null.x0, gamma=conditional.gamma)

        return guided
