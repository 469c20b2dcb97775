"""DPM-Solver++(2M), of the ODE and of the SDE: a DDIM step along an x0 extrapolated to the middle of the step."""

import math
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.sampler.base import Level, Predict, Sampler, Steps
from imagen.sampler.ddim import ddim_step
from imagen.types import Prediction


class Multistep2(Sampler):
    """The two-step extrapolation, in log-SNR, with one network call a step.

    The first step has nothing to extrapolate from, and one into the clean end is so long in log-SNR that extrapolating
    over it would blow up: both are plain DDIM steps.
    """

    eta: ClassVar[float]
    """DDIM's: 0 for the ODE, 1 for the SDE."""

    def _steps(
        self, predict: Predict, x: Float[Tensor, "b 3 h w"], levels: list[Level], generators: list[torch.Generator]
    ) -> Steps:
        x0_before, step_before = None, math.inf
        for here, there in pairwise(levels):
            prediction = predict(x, here)
            step, x0 = there.logsnr - here.logsnr, prediction.x0
            if x0_before is not None and there.sigma > 0:
                x0 = x0 + step / (2 * step_before) * (x0 - x0_before)
            x0_before, step_before = prediction.x0, step
            x = ddim_step(x, Prediction(x0), here, there, self.eta, generators)
            yield x, prediction


class DPMSolverPP2M(Multistep2):
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): order 2, deterministic."""

    eta = 0.0


class SDEDPMSolverPP2M(Multistep2):
    """SDE-DPM-Solver++(2M) (arXiv 2211.01095): the same of the reverse SDE, all of its noise made anew.

    The new noise corrects the errors of the steps before it, at the price of more steps. A grid that stops above clean
    ends with the noise that belongs there.
    """

    eta = 1.0
