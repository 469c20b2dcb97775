"""Loss weights as functions of log-SNR, all in units of epsilon's mean squared error.

A weight on x0's error is ``SNR`` times the weight here. Only weight times training density matters in expectation; the
density is the schedule's, so that a weight published per unit of log-SNR is one under a schedule even in log-SNR.
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


class Flow(Weighting):
    """``(1 + 1 / sqrt(SNR))^2``: the plain MSE of flow matching's velocity (arXiv 2403.03206, section 3)."""

    def forward(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return (1 + (-logsnr / 2).exp()).square()


class Sigmoid(Weighting):
    """``sigmoid(bias - logsnr)`` (VDM++, arXiv 2303.00848; SiD2, arXiv 2410.19324): soft-min-SNR, gamma ``exp(bias)``.

    Those papers weigh a unit of log-SNR, dividing the schedule's density out. Here the density multiplies, as in every
    weighting of the package; a schedule even in log-SNR, such as the sigmoid one from -10 to 10, gives theirs.
    """

    def __init__(self, *, bias: float) -> None:
        super().__init__()
        if not math.isfinite(bias):
            raise UserError(f"bias={bias} must be a number.")
        self.bias = bias

    def forward(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return (self.bias - logsnr).sigmoid()


class Uncertainty(Weighting):
    """EDM's weight over a learned ``e^u``, plus u: every log-SNR comes to count alike (EDM2, arXiv 2312.02696).

    For a given error the loss is least where ``e^u`` is the EDM-weighted error at that log-SNR, and is 1 + u there: it
    falls below zero, and cannot be compared with another weighting's. u is linear in ``num_features`` fixed cosines and
    sines of log-SNR, whose frequencies are quantiles of the normal law that EDM2 draws its own from, and starts at 0.
    Not part of the denoiser: trained (without weight decay) and checkpointed, but neither averaged nor exported.
    """

    frequencies: Float[Tensor, " f"]

    def __init__(self, *, sigma_data: float, num_features: int) -> None:
        super().__init__()
        if num_features < 2 or num_features % 2:
            raise UserError(f"num_features={num_features} must be positive and even: cosines and sines.")
        self.edm = EDM(sigma_data=sigma_data)
        # per cycle of ln(sigma / alpha) / 4, EDM's noise input: the positive half of the normal law, evenly
        quantiles = 0.5 + (torch.arange(num_features // 2) + 0.5) / num_features
        self.register_buffer("frequencies", 2 * math.pi * torch.special.ndtri(quantiles) / 8, persistent=False)
        self.coefficients = nn.Parameter(torch.zeros(num_features))

    def log_variance(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """u: the logarithm of the EDM-weighted error that is expected at this log-SNR."""
        angles = logsnr[:, None] * self.frequencies
        # not a matrix product, which mixed precision would round to three digits
        return (torch.cat([angles.cos(), angles.sin()], dim=1) * self.coefficients).sum(dim=1)

    def forward(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return self.edm(logsnr) * torch.exp(-self.log_variance(logsnr))

    def loss(self, error: Float[Tensor, " b"], logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return super().loss(error, logsnr) + self.log_variance(logsnr)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise UserError(f"{name}={value} must be a positive number.")
    return value
