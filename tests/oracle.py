"""A denoiser that is right by closed form, where the data are Gaussian: what samplers are proven against.

With x0 ~ N(m, s^2) per pixel, x_t ~ N(alpha m, v) with v = alpha^2 s^2 + sigma^2, and everything is a formula.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.schedule import alpha_sigma
from imagen.types import Conditioning, Prediction, TextEmbedding


class GaussianOracle:
    """E[x0 | x_t] for data of standard deviation ``std`` and mean ``mean`` plus the prompt's mean token (null text: 0).

    ``batches`` keeps how many examples each call brought.
    """

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std
        self.batches: list[int] = []

    def mean_of(self, cond: Conditioning) -> Float[Tensor, "b 1 1 1"]:
        return self.mean + cond.text.tokens.mean((1, 2)).masked_fill(cond.text.absent, 0.0)[:, None, None, None]

    def __call__(self, x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning) -> Prediction:
        self.batches.append(len(x_t))
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        mean = self.mean_of(cond)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return Prediction(mean + gain * (x_t - alpha * mean))

    def deviation(self, logsnr: float) -> float:
        """The standard deviation of x_t."""
        alpha, sigma = alpha_sigma(torch.tensor(logsnr, dtype=torch.float64))
        return math.sqrt(alpha.item() ** 2 * self.std**2 + sigma.item() ** 2)

    def flow(
        self, x: Float[Tensor, "b 3 h w"], start: float, end: float, cond: Conditioning
    ) -> Float[Tensor, "b 3 h w"]:
        """Where the probability-flow ODE takes x from log-SNR ``start`` to ``end``: the same quantile of x_t's law."""
        alphas, _ = alpha_sigma(torch.tensor([start, end], dtype=torch.float64))
        mean = self.mean_of(cond).to(x.dtype)
        quantile = (x - alphas[0].item() * mean) / self.deviation(start)
        return alphas[1].item() * mean + self.deviation(end) * quantile


def conditioning(batch: int, token: float = 0.0, dtype: torch.dtype = torch.float64) -> Conditioning:
    """A base stage's conditioning on prompts of two tokens, all of the value ``token``."""
    return Conditioning(
        TextEmbedding(torch.full((batch, 2, 4), token, dtype=dtype), torch.ones(batch, 2, dtype=torch.bool))
    )


def generators(batch: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(batch)]
