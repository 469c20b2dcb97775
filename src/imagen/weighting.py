"""Loss weights as functions of log-SNR, all in units of epsilon's mean squared error.

A weight on x0's error is ``SNR`` times the weight here. Only weight times training density matters in expectation.
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen.errors import UserError


class Weighting(nn.Module, ABC):
    """How much an example at this log-SNR counts. A module, so that what it learns is trained with the network."""

    @abstractmethod
    def forward(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The factor on each example's epsilon-MSE, not negative."""

    def loss(self, error: Float[Tensor, " b"], logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """What training makes small, from each example's epsilon-MSE."""
        return self(logsnr) * error


class Uniform(Weighting):
    """1: the plain epsilon loss of Imagen (appendix A) and DDPM (arXiv 2006.11239, equation 14)."""

    def forward(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return torch.ones_like(logsnr)


class MinSNR(Weighting):
    """``min(SNR, gamma) / SNR``: caps what nearly clean pictures count (arXiv 2303.09556)."""

    def __init__(self, *, gamma: float) -> None:
        super().__init__()
        self.gamma = _positive("gamma", gamma)

    def forward(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return (math.log(self.gamma) - logsnr).clamp(max=0).exp()


class SoftMinSNR(Weighting):
    """``gamma / (SNR + gamma)``: min-SNR without the kink, gamma = 1 / sigma_data^2 (arXiv 2401.11605)."""

    def __init__(self, *, gamma: float) -> None:
        super().__init__()
        self.gamma = _positive("gamma", gamma)

    def forward(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return (math.log(self.gamma) - logsnr).sigmoid()


class EDM(Weighting):
    """``(SNR + 1 / sigma_data^2) / SNR``: EDM's loss weight (arXiv 2206.00364, table 1); v's own MSE at sigma_data 1.

    ``sigma_data`` is the standard deviation of the data, in the pictures' unit.
    """

    def __init__(self, *, sigma_data: float) -> None:
        super().__init__()
        self.sigma_data = _positive("sigma_data", sigma_data)

    def forward(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return 1 + (-logsnr).exp() / self.sigma_data**2


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise UserError(f"{name}={value} must be a positive number.")
    return value
