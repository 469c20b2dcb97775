"""Heun's method in sigma / alpha, with or without churn (EDM, arXiv 2206.00364)."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.sampler.base import Level, Predict, Sampler, Steps, epsilon, level_of, moved, noise_like

LONGEST_FALL = 5.0
"""The most by which time may fall in a step of Heun's method.

Over a step from time s to u, averaging the two slopes ``(x - x0) / time`` multiplies the second x0 by (s / u - 1) / 2:
up to this fall at most by two. From pure noise and into the clean end time falls a thousandfold or to nothing, and the
difference between two x0 would be magnified as much; such steps are plain ones, of the first slope alone.
"""


class Heun(Sampler):
    """Order 2, two network calls a step but for the longest: EDM's algorithm 1 and, with ``s_churn``, algorithm 2.

    Churn puts fresh noise on x in front of a step, where sigma / alpha lies in [``s_min``, ``s_max``]: it raises
    sigma / alpha by the factor ``1 + min(s_churn / num_steps, sqrt(2) - 1)``. ``s_noise`` is the standard deviation of
    that noise, a little above 1 to make up for what a network removes too much. None at ``s_churn`` 0.
    """

    def __init__(self, *, num_steps: int, s_churn: float, s_min: float, s_max: float, s_noise: float) -> None:
        super().__init__(num_steps=num_steps)
        if s_churn < 0 or s_noise < 0:
            raise UserError(f"s_churn={s_churn} and s_noise={s_noise} must not be negative.")
        if not 0 <= s_min <= s_max:
            raise UserError(f"s_min={s_min} must be between 0 and s_max={s_max}.")
        self.churn = min(s_churn / num_steps, math.sqrt(2) - 1)
        self.s_min, self.s_max, self.s_noise = s_min, s_max, s_noise

    def _steps(
        self, predict: Predict, x: Float[Tensor, "b 3 h w"], levels: list[Level], generators: list[torch.Generator]
    ) -> Steps:
        for start, there in pairwise(levels):
            x, here = self._churned(x, start, generators)
            prediction = predict(x, here)
            eps = epsilon(x, prediction, here)
            x = moved(x, prediction, here, there)
            if there.logsnr - here.logsnr <= 2 * math.log(LONGEST_FALL):
                prediction = predict(x, there)
                half_step = (there.sigma - there.alpha * here.sigma / here.alpha) / 2
                x = x + half_step * (epsilon(x, prediction, there) - eps)
            yield x, prediction

    def _churned(
        self, x: Float[Tensor, "b 3 h w"], level: Level, generators: list[torch.Generator]
    ) -> tuple[Float[Tensor, "b 3 h w"], Level]:
        """x with fresh noise, and the level where it then is."""
        time = math.exp(-level.logsnr / 2)
        if self.churn == 0 or not self.s_min <= time <= self.s_max:
            return x, level
        noisier = level_of(level.logsnr - 2 * math.log1p(self.churn))
        std = noisier.alpha * time * math.sqrt((1 + self.churn) ** 2 - 1) * self.s_noise
        return noisier.alpha / level.alpha * x + std * noise_like(x, generators), noisier
