"""Ancestral sampling: each step draws from the reverse process, whose variance is given or learned."""

import math
from abc import abstractmethod
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.parameterization import Parameterization
from imagen.sampler.base import Level, Predict, Sampler, Steps, moved, noise_like
from imagen.types import Prediction


class Ancestral(Sampler):
    """DDPM's walk (arXiv 2006.11239, algorithm 2; Imagen, appendix A).

    gamma in [0, 1] interpolates the log of the added variance from its lower bound, exact if the data are one picture,
    to its upper, exact if they have unit variance. A step into the clean end takes the lower bound: no noise, as in
    DDPM. For Gaussian data of standard deviation 0.5 or less this gives the better variance, and a large gamma with
    few steps would leave its noise on the picture.
    """

    reads_renoise_x0: ClassVar[bool] = True

    def _steps(
        self, predict: Predict, x: Float[Tensor, "b 3 h w"], levels: list[Level], generators: list[torch.Generator]
    ) -> Steps:
        for here, there in pairwise(levels):
            prediction = predict(x, here)
            kept = math.exp(here.logsnr - there.logsnr)
            gamma = 0.0 if there.sigma == 0 else self._gamma(prediction)
            std = math.sqrt(1 - kept) * there.sigma ** (1 - gamma) * here.sigma**gamma
            x = moved(x, prediction, here, there, kept) + std * noise_like(x, generators)
            yield x, prediction

    @abstractmethod
    def _gamma(self, prediction: Prediction) -> float | Float[Tensor, "b 3 h w"]:
        """Where between its bounds the log of the variance lies."""


class DDPM(Ancestral):
    """Ancestral sampling with the variance that the network has learned, if it has, else with ``gamma`` in [0, 1]."""

    def __init__(self, *, num_steps: int, gamma: float) -> None:
        super().__init__(num_steps=num_steps)
        if not 0 <= gamma <= 1:
            raise UserError(f"gamma={gamma} must be between 0 and 1.")
        self.gamma = gamma

    def _gamma(self, prediction: Prediction) -> float | Float[Tensor, "b 3 h w"]:
        return self.gamma if prediction.gamma is None else prediction.gamma


class LearnedVarianceDDPM(Ancestral):
    """Ancestral sampling with a learned variance and no other (Improved DDPM, arXiv 2102.09672, equation 15)."""

    def check(self, parameterization: Parameterization, picked: str) -> None:
        """Raises: UserError if the parameterization reads no variance from a network's output."""
        if not parameterization.learns_variance:
            raise UserError(
                f"sampler=ddpm_learned does not go with {picked}, whose network has learned no variance: sample it "
                "with sampler=ddpm, which brings its own, or train one with parameterization=epsilon_learned_variance"
            )

    def _gamma(self, prediction: Prediction) -> float | Float[Tensor, "b 3 h w"]:
        assert prediction.gamma is not None, "a wrapper of the denoiser lost its variance"
        return prediction.gamma
