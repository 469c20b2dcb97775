"""Guidance without the part that saturates colours."""

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.guidance.base import Combine, TwoHalves, rewind
from imagen.types import Prediction

PIXELS = (1, 2, 3)


class AdaptiveProjectedGuidance(TwoHalves):
    """APG (arXiv 2410.02416, section 4): conditional x0 plus ``weight - 1`` times a tamed difference.

    The difference between both halves' x0 gathers ``momentum`` times its running sum from step to step (in (-1, 1);
    negative: reverse momentum), is shortened to an L2 norm over all pixels and channels of at most ``norm_threshold``
    (inf: never), and its part parallel to the conditional x0 is multiplied by ``eta``. With eta 1, no threshold and
    momentum 0 it is classifier-free guidance. A walk that jumps back to noisier levels begins a new sum there.
    """

    def __init__(self, *, weight: float, eta: float, norm_threshold: float, momentum: float) -> None:
        if not norm_threshold > 0:
            raise UserError(f"norm_threshold={norm_threshold} must be above 0; inf never shortens")
        if not -1 < momentum < 1:
            raise UserError(f"momentum={momentum} must be between -1 and 1, neither included; 0 is none")
        super().__init__(weight=weight)
        self.eta = eta
        self.norm_threshold = norm_threshold
        self.momentum = momentum

    def combiner(self) -> Combine:
        past: list[tuple[Float[Tensor, " b"], Float[Tensor, "b 3 h w"]]] = []

        def guided(
            logsnr: Float[Tensor, " b"], conditional: Float[Tensor, "b 3 h w"], null: Float[Tensor, "b 3 h w"]
        ) -> Prediction:
            rewind(past, logsnr)
            gathered = conditional - null
            if past:
                gathered = gathered + self.momentum * past[-1][1]
            past.append((logsnr, gathered))
            del past[:-2]  # this step's and the one before: sums are as large as pictures
            return Prediction(conditional + (self.weight - 1) * self._tamed(gathered, conditional))

        return guided

    def _tamed(self, difference: Float[Tensor, "b 3 h w"], x0: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        norm = torch.linalg.vector_norm(difference, dim=PIXELS, keepdim=True)
        difference = difference * (self.norm_threshold / norm).clamp(max=1)
        square = x0.square().sum(PIXELS, keepdim=True).clamp(min=torch.finfo(x0.dtype).tiny)
        parallel = (difference * x0).sum(PIXELS, keepdim=True) / square * x0
        return difference + (self.eta - 1) * parallel
