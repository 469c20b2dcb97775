"""What every sampler is: a walk along the levels of a grid, made of moves that put x0 and its noise together anew."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.parameterization import Parameterization
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
    return [level_of(logsnr) for logsnr in logsnr_grid.tolist()]


def level_of(logsnr: float) -> Level:
    """The level of a log-SNR."""
    alpha, sigma = alpha_sigma(torch.tensor(logsnr, dtype=torch.float64, device="cpu"))
    return Level(logsnr, alpha.item(), sigma.item())


def epsilon(x: Float[Tensor, "b 3 h w"], prediction: Prediction, level: Level) -> Float[Tensor, "b 3 h w"]:
    """The noise in x by a prediction: by its ``renoise_x0`` where it has one (CFG++), else by its x0."""
    x0 = prediction.x0 if prediction.renoise_x0 is None else prediction.renoise_x0
    return (x - level.alpha * x0) / level.sigma


def moved(
    x: Float[Tensor, "b 3 h w"], prediction: Prediction, here: Level, there: Level, kept: float = 1.0
) -> Float[Tensor, "b 3 h w"]:
    """x taken from one level to another: the x0 of a prediction with x's own noise, as much as belongs there.

    ``kept`` in [0, 1] is the share of that noise's variance that x's own makes up; the rest is for new noise. It is the
    move of DDIM (arXiv 2010.02502, equation 12), and exact for any x0 that does not change on the way.
    """
    return there.alpha * prediction.x0 + there.sigma * math.sqrt(kept) * epsilon(x, prediction, here)


def noise_like(x: Float[Tensor, "b 3 h w"], generators: list[torch.Generator]) -> Float[Tensor, "b 3 h w"]:
    """Standard normal noise in x's shape, dtype and place, example i from ``generators[i]``."""
    assert len(generators) == x.shape[0], "one generator per example"
    return normal_from(generators, tuple(x.shape[1:]), x.dtype).to(x.device)


class Sampler(ABC):
    """Walks x along a grid. ``num_steps`` is the length of the grid from pure noise to clean.

    ``reads_renoise_x0`` says that a step is one move along one prediction, so that its noise may be another x0's.
    """

    reads_renoise_x0: ClassVar[bool] = False

    def __init__(self, *, num_steps: int) -> None:
        if num_steps < 1:
            raise UserError(f"num_steps={num_steps} must be at least 1.")
        self.num_steps = num_steps

    def check(self, parameterization: Parameterization, picked: str) -> None:
        """Called before any network is built; ``picked`` is how the user picks the parameterization.

        Raises: UserError if it needs what such a network does not say.
        """

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
            prediction = denoise(x, x.new_full((x.shape[0],), level.logsnr), cond)
            assert self.reads_renoise_x0 or prediction.renoise_x0 is None, "guidance and sampler were not checked"
            return prediction

        steps = self._steps(predict, x, levels_of(logsnr_grid), generators)
        for i, (there, prediction) in enumerate(steps):
            x = there
            if on_step is not None:
                on_step(i, x, prediction)
        return x

    @abstractmethod
    def _steps(
        self, predict: Predict, x: Float[Tensor, "b 3 h w"], levels: list[Level], generators: list[torch.Generator]
    ) -> Steps:
        """The walk from the first level, where x is, to the last, lazily."""
