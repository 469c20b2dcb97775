"""Samplers: from noise to pictures along a grid of log-SNRs, reading nothing of a model but its x0.

Every sampler derives epsilon from (x_t, x0) itself, so guidance and thresholding need only change x0. States keep x's
dtype, coefficients are float64 numbers. A grid may start below pure noise and stop above clean, or end at infinity.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.randomness import normal_from
from imagen.schedule import alpha_sigma
from imagen.types import Conditioning, Denoise, Prediction

OnStep = Callable[[int, Float[Tensor, "b 3 h w"], Prediction], object]
"""Called after every step with its number, the new x, and the last prediction that led there."""

Steps = Iterator[tuple[Float[Tensor, "b 3 h w"], Prediction]]
"""After each step from one level to the next: the new x, and the last prediction that led there."""


@dataclass(frozen=True)
class Level:
    """One noise level of a grid, in float64 numbers."""

    logsnr: float
    alpha: float
    sigma: float


Predict = Callable[[Float[Tensor, "b 3 h w"], Level], Prediction]
"""The model under its conditioning, at a level of the grid."""


def levels_of(logsnr_grid: Float[Tensor, " s"]) -> list[Level]:
    """A grid's levels, noisiest first."""
    assert len(logsnr_grid) > 1, "a grid has two levels or more"
    assert (logsnr_grid.diff() > 0).all(), "a grid goes from noisy to clean"
    grid = logsnr_grid.double()
    return [Level(*numbers) for numbers in torch.stack([grid, *alpha_sigma(grid)], dim=1).tolist()]


def epsilon(x: Float[Tensor, "b 3 h w"], prediction: Prediction, level: Level) -> Float[Tensor, "b 3 h w"]:
    """The noise in x by a prediction: by its ``renoise_x0`` where it has one (CFG++), else by its x0."""
    x0 = prediction.x0 if prediction.renoise_x0 is None else prediction.renoise_x0
    return (x - level.alpha * x0) / level.sigma


def noise_like(x: Float[Tensor, "b 3 h w"], generators: list[torch.Generator]) -> Float[Tensor, "b 3 h w"]:
    """Standard normal noise in x's shape, dtype and place, example i from ``generators[i]``."""
    assert len(generators) == x.shape[0], "one generator per example"
    return normal_from(generators, tuple(x.shape[1:]), x.dtype).to(x.device)


class Sampler(ABC):
    """Walks x along a grid. ``num_steps`` is the length of the grid from pure noise to clean."""

    def __init__(self, *, num_steps: int) -> None:
        if num_steps < 1:
            raise UserError(f"num_steps={num_steps} must be at least 1.")
        self.num_steps = num_steps

    def __call__(
        self,
        denoise: Denoise,
        x: Float[Tensor, "b 3 h w"],
        logsnr_grid: Float[Tensor, " s"],
        cond: Conditioning,
        generators: list[torch.Generator],
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """From x at the grid's first level to a sample at its last; example i's noise is ``generators[i]``'s alone."""

        def predict(x: Float[Tensor, "b 3 h w"], level: Level) -> Prediction:
            return denoise(x, x.new_full((x.shape[0],), level.logsnr), cond)

        steps = self._steps(predict, x, levels_of(logsnr_grid), generators)
        for i, (moved, prediction) in enumerate(steps):
            x = moved
            if on_step is not None:
                on_step(i, x, prediction)
        return x

    @abstractmethod
    def _steps(
        self, predict: Predict, x: Float[Tensor, "b 3 h w"], levels: list[Level], generators: list[torch.Generator]
    ) -> Steps:
        """The walk from the first level, where x is, to the last, lazily."""


class DDPM(Sampler):
    """Ancestral sampling (Imagen, appendix A; DDPM, arXiv 2006.11239, algorithm 2).

    ``gamma`` in [0, 1] interpolates the log of the added variance from its lower bound, exact if the data are one
    picture, to its upper, exact if they have unit variance. The last step takes the lower bound: no noise into the
    clean end, as in DDPM. For Gaussian data of standard deviation 0.5 or less this gives the better variance, and a
    large gamma with few steps would leave its noise on the picture.
    """

    def __init__(self, *, num_steps: int, gamma: float) -> None:
        super().__init__(num_steps=num_steps)
        if not 0 <= gamma <= 1:
            raise UserError(f"gamma={gamma} must be between 0 and 1.")
        self.gamma = gamma

    def _steps(
        self, predict: Predict, x: Float[Tensor, "b 3 h w"], levels: list[Level], generators: list[torch.Generator]
    ) -> Steps:
        for here, there in pairwise(levels):
            prediction = predict(x, here)
            kept = math.exp(here.logsnr - there.logsnr)
            mean = there.alpha * prediction.x0 + there.sigma * math.sqrt(kept) * epsilon(x, prediction, here)
            gamma = 0.0 if there is levels[-1] else self.gamma
            std = math.sqrt(1 - kept) * there.sigma ** (1 - gamma) * here.sigma**gamma
            x = mean + std * noise_like(x, generators)
            yield x, prediction


class DDIM(Sampler):
    """DDIM (arXiv 2010.02502, equation 12): deterministic at ``eta`` 0, where it is Imagen's (appendix A), order 1.

    ``eta`` in [0, 1] scales the standard deviation of fresh noise; 1 is DDPM with gamma 0.
    """

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
            fresh = -(self.eta**2) * math.expm1(here.logsnr - there.logsnr)
            moved = there.alpha * prediction.x0 + there.sigma * math.sqrt(1 - fresh) * epsilon(x, prediction, here)
            x = moved if fresh == 0 else moved + there.sigma * math.sqrt(fresh) * noise_like(x, generators)
            yield x, prediction


class DPMSolverPP2M(Sampler):
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): order 2 with one network call a step, deterministic.

    A DDIM step whose x0 is extrapolated in log-SNR to the middle of the step. The first step has nothing to extrapolate
    from, and the last is so long in log-SNR that extrapolating over it would blow up: both are plain DDIM steps.
    """

    def _steps(
        self, predict: Predict, x: Float[Tensor, "b 3 h w"], levels: list[Level], generators: list[torch.Generator]
    ) -> Steps:
        x0_before, step_before = None, math.inf
        for here, there in pairwise(levels):
            prediction = predict(x, here)
            step, x0 = there.logsnr - here.logsnr, prediction.x0
            if x0_before is not None and there is not levels[-1]:
                x0 = x0 + step / (2 * step_before) * (x0 - x0_before)
            x0_before, step_before = prediction.x0, step
            x = there.alpha * x0 + there.sigma * epsilon(x, replace(prediction, x0=x0), here)
            yield x, prediction


class Heun(Sampler):
    """Heun's method in sigma / alpha (EDM, arXiv 2206.00364, algorithm 1): order 2, two network calls a step.

    The first and the last step are DDIM steps of one call, as EDM's last is. From pure noise and into the clean end
    sigma / alpha changes a thousandfold, and averaging the two slopes of such a step would multiply the difference
    between two x0 by half of that.
    """

    def _steps(
        self, predict: Predict, x: Float[Tensor, "b 3 h w"], levels: list[Level], generators: list[torch.Generator]
    ) -> Steps:
        for here, there in pairwise(levels):
            prediction = predict(x, here)
            eps = epsilon(x, prediction, here)
            x = there.alpha * prediction.x0 + there.sigma * eps
            if here is not levels[0] and there is not levels[-1]:
                prediction = predict(x, there)
                half_step = (there.sigma - there.alpha * here.sigma / here.alpha) / 2
                x = x + half_step * (epsilon(x, prediction, there) - eps)
            yield x, prediction
