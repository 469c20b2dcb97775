"""DDIM: the move along one predicted x0, with any share of its noise renewed."""

import math
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.sampler.base import Level, Predict, Sampler, Steps, moved, noise_like
from imagen.types import Prediction


class DDIM(Sampler):
    """DDIM (arXiv 2010.02502, equation 12): deterministic at ``eta`` 0, where it is Imagen's (appendix A), order 1.

    ``eta`` in [0, 1] scales the standard deviation of fresh noise; 1 is DDPM with gamma 0.
    """

    reads_renoise_x0: ClassVar[bool] = True

    def __init__(self, *, num_steps: int, eta: float) -> None:
        super().__init__(num_steps=num_steps)
        if not 0 <= eta <= 1:
            raise UserError(f"eta={eta} must be between 0 and 1.")
        self.eta = eta

    def _steps(
        self, predict: Predict, x: Float[Tensor, "b 3 h w"], levels: list[Level], generators: list[torch.Generator]
    ) -> Steps:
        for here, there in pairwise(levels):
            prediction = predict(x, here)
            x = ddim_step(x, prediction, here, there, self.eta, generators)
            yield x, prediction


def ddim_step(
    x: Float[Tensor, "b 3 h w"],
    prediction: Prediction,
    here: Level,
    there: Level,
    eta: float,
    generators: list[torch.Generator],
) -> Float[Tensor, "b 3 h w"]:
    """One step of DDIM; at ``eta`` 1 the exact step of the reverse SDE for an x0 that does not change on the way."""
    fresh = -(eta**2) * math.expm1(here.logsnr - there.logsnr)
    x_there = moved(x, prediction, here, there, 1 - fresh)
    return x_there if fresh == 0 else x_there + there.sigma * math.sqrt(fresh) * noise_like(x, generators)
