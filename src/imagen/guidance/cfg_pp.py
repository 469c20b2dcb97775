"""Guidance that stays on the data: guided x0, but the null half's noise."""

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.guidance.base import Combine, TwoHalves
from imagen.sampler import Sampler
from imagen.types import Prediction


class CFGPlusPlus(TwoHalves):
    """CFG++ (arXiv 2406.08070, algorithm 2): x0 interpolated between both halves, re-noised with the null half's noise.

    ``weight`` in [0, 1]: 0 is the plain null model, 1 the conditional x0 with the null noise. With DDIM, a step from
    log-SNR l to l' is classifier-free guidance of weight ``weight / (1 - exp((l - l') / 2))``, which has no limit for
    short steps: a step is the null model's and a push of ``weight`` times the halves' difference, however long it is,
    and there is no smooth path that a sampler of a higher order could follow. Thresholds act on x0 alone.
    """

    def __init__(self, *, weight: float) -> None:
        if not 0 <= weight <= 1:
            raise UserError(
                f"weight={weight} does not go with CFG++, which interpolates: it must be between 0 and 1, e.g. 0.6; "
                "guidance=classifier_free takes larger ones"
            )
        super().__init__(weight=weight)

    @property
    def reads_null(self) -> bool:
        return True  # at weight 1 too: its noise is the null half's

    def check(self, sampler: Sampler, picked: str) -> None:
        """Raises: UserError unless the sampler puts the null half's noise back in steps of one move each."""
        if not sampler.reads_renoise_x0:
            raise UserError(
                f"guidance=cfg_pp does not go with {picked}, whose steps combine several predictions: sample it with "
                "sampler=ddim, ddpm or flow_euler, or choose guidance=classifier_free"
            )

    def combiner(self) -> Combine:
        return self._guided

    def _guided(
        self, logsnr: Float[Tensor, " b"], conditional: Float[Tensor, "b 3 h w"], null: Float[Tensor, "b 3 h w"]
    ) -> Prediction:
        return Prediction(torch.lerp(null, conditional, self.weight), renoise_x0=null)
