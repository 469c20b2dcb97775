"""Power-function averages: their length is a share of the training so far (EDM2, arXiv 2312.02696, section 3)."""

from copy import deepcopy

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from imagen.ema.average import EMA, move
from imagen.errors import UserError

LONGEST = 12**-0.5
"""The relative standard deviation of a plain mean over all steps (gamma = 0), which no sigma_rel reaches."""


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the profile ``t^gamma`` whose standard deviation is ``sigma_rel`` of the training so far.

    The positive root of ``g^3 + 7 g^2 + (16 - sigma_rel^-2) g + (12 - sigma_rel^-2) = 0`` (EDM2, appendix C).

    Raises: UserError unless 0 < sigma_rel < 12^-0.5.
    """
    if not 0 < sigma_rel < LONGEST:
        raise UserError(f"sigma_rel={sigma_rel} must be above 0 and below {LONGEST:.4f}, the plain mean of all steps")
    inverse = sigma_rel**-2.0
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def inner_product(
    gamma: Float64[Tensor, "*i"],
    step: Float64[Tensor, "*i"],
    other_gamma: Float64[Tensor, "*j"],
    other_step: Float64[Tensor, "*j"],
) -> Float64[Tensor, "*k"]:
    """The integral over training of the product of two profiles, broadcast (EDM2, appendix C).

    A profile ending at step T is ``(gamma + 1) t^gamma / T^(gamma + 1)`` up to T and zero after. A running average's
    weight of step n is exactly the profile's integral from n - 1 to n.
    """
    shorter, longer = torch.minimum(step, other_step), torch.maximum(step, other_step)
    shared = (shorter / step) ** gamma * (shorter / other_step) ** other_gamma / longer
    return (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) * shared


class PowerEMA(EMA):
    """One average for each length in ``sigma_rel``; ``network`` is the first.

    After step t, ``average = beta average + (1 - beta) parameter`` with ``beta = (1 - 1/t)^(gamma + 1)``: step n weighs
    in as ``n^gamma``, and the initial weights not at all, whatever the length of the run (EDM2, section 3.1).
    """

    def __init__(self, network: nn.Module, *, sigma_rel: list[float]) -> None:
        """Raises: UserError if a length is out of range or given twice, or if there is none."""
        super().__init__()
        if not sigma_rel or len(set(sigma_rel)) < len(sigma_rel):
            raise UserError(f"sigma_rel={sigma_rel} must name at least one length, each once, e.g. [0.05, 0.10]")
        self.sigma_rel = sigma_rel
        self.gammas = [gamma_of(sigma) for sigma in sigma_rel]
        copies = [deepcopy(network).requires_grad_(False).eval() for _ in sigma_rel]
        self.network = copies[0]
        self.others = nn.ModuleList(copies[1:])

    def tracks(self) -> list[tuple[float, nn.Module]]:
        """Each length with its averaged network."""
        return list(zip(self.sigma_rel, self.networks(), strict=True))

    def networks(self) -> list[nn.Module]:
        return [self.network, *self.others]

    def update(self, network: nn.Module, step: int) -> None:
        for gamma, (_, averaged) in zip(self.gammas, self.tracks(), strict=True):
            move(averaged, network, 1 - (1 - 1 / step) ** (gamma + 1))
