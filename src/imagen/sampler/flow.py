"""Euler's and Heun's methods along the straight paths of flow matching (arXiv 2210.02747, 2209.03003).

Divided by alpha + sigma, x_t is ``(1 - u) x0 + u eps`` at the flow's time ``u = sigma / (alpha + sigma)``, which goes
from 1 to 0, and its velocity is ``eps - x0``: the model need not have been trained as a flow.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.sampler.base import Level, Predict, Sampler, Steps, epsilon
from imagen.sampler.heun import LONGEST_FALL
from imagen.types import Prediction


def flow_time(level: Level) -> float:
    """``sigma / (alpha + sigma)``, in [0, 1]."""
    return level.sigma / (level.alpha + level.sigma)


def velocity(x: Float[Tensor, "b 3 h w"], prediction: Prediction, level: Level) -> Float[Tensor, "b 3 h w"]:
    """The derivative of ``x / (alpha + sigma)`` in the flow's time."""
    return epsilon(x, prediction, level) - prediction.x0


def euler(x0: Float[Tensor, "b 3 h w"], slope: Float[Tensor, "b 3 h w"], there: Level) -> Float[Tensor, "b 3 h w"]:
    """x on the straight line through x0, where it passes ``there``."""
    return (there.alpha + there.sigma) * (x0 + flow_time(there) * slope)


class FlowEuler(Sampler):
    """Euler's method in the flow's time: order 1. It is DDIM at eta 0 up to rounding, whatever the noise schedule."""

    reads_renoise_x0: ClassVar[bool] = True

    def _steps(
        self, predict: Predict, x: Float[Tensor, "b 3 h w"], levels: list[Level], generators: list[torch.Generator]
    ) -> Steps:
        for here, there in pairwise(levels):
            prediction = predict(x, here)
            x = euler(prediction.x0, velocity(x, prediction, here), there)
            yield x, prediction


class FlowHeun(Sampler):
    """Heun's method in the flow's time: order 2, two network calls a step but for the steps into the clean end.

    From pure noise the flow's time changes little, so that, other than in ``Heun``, the first step is of order 2 too.
    """

    def _steps(
        self, predict: Predict, x: Float[Tensor, "b 3 h w"], levels: list[Level], generators: list[torch.Generator]
    ) -> Steps:
        for here, there in pairwise(levels):
            prediction = predict(x, here)
            slope = velocity(x, prediction, here)
            x = euler(prediction.x0, slope, there)
            if flow_time(here) <= LONGEST_FALL * flow_time(there):
                prediction = predict(x, there)
                half_step = (there.alpha + there.sigma) * (flow_time(there) - flow_time(here)) / 2
                x = x + half_step * (velocity(x, prediction, there) - slope)
            yield x, prediction
