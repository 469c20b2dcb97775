"""The training targets: one linear reading of the network's output each."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from imagen.errors import UserError
from imagen.parameterization.base import Parameterization
from imagen.schedule import alpha_sigma


class Epsilon(Parameterization):
    """The output is the noise: Imagen's choice for every stage (appendix A; DDPM, arXiv 2006.11239, equation 12)."""

    def target(
        self, x0: Float[Tensor, "b 3 h w"], eps: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 3 h w"]:
        return eps

    def x0(
        self, output: Float[Tensor, "b 3 h w"], x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 3 h w"]:
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        return (x_t - sigma * output) / alpha

    def eps_factor(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return torch.ones_like(logsnr)


class V(Parameterization):
    """The output is ``v = alpha eps - sigma x0``, well scaled at both ends (arXiv 2202.00512, appendix D)."""

    def target(
        self, x0: Float[Tensor, "b 3 h w"], eps: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 3 h w"]:
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        return alpha * eps - sigma * x0

    def x0(
        self, output: Float[Tensor, "b 3 h w"], x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 3 h w"]:
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        return alpha * x_t - sigma * output

    def eps_factor(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        # an error e of v is sigma e of x0, hence alpha e of epsilon
        return logsnr.sigmoid()


class X0(Parameterization):
    """The output is the clean picture itself (arXiv 2202.00512, section 4)."""

    def target(
        self, x0: Float[Tensor, "b 3 h w"], eps: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 3 h w"]:
        return x0

    def x0(
        self, output: Float[Tensor, "b 3 h w"], x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 3 h w"]:
        return output

    def eps_factor(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return logsnr.exp()


class EDM(Parameterization):
    """EDM's preconditioning (arXiv 2206.00364, table 1 and equation 7) for data of standard deviation ``sigma_data``.

    Its skip, output and input scales, carried from ``x0 + (sigma / alpha) eps`` to ``x_t``, are with ``n^2 = sigma^2 +
    alpha^2 sigma_data^2``: ``alpha sigma_data^2 / n^2``, ``sigma sigma_data / n`` and ``1 / n``. The input and, for
    such data, the target have unit variance at every log-SNR; at ``sigma_data`` 1 the target is ``-v``. The network is
    told the log-SNR itself, of which EDM's noise input ``ln(sigma / alpha) / 4`` is a multiple.
    """

    def __init__(self, *, sigma_data: float) -> None:
        if not 0 < sigma_data < math.inf:
            raise UserError(f"sigma_data={sigma_data} must be a positive number.")
        self.sigma_data = sigma_data

    def _scales(
        self, logsnr: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
        """alpha, sigma and n."""
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        return alpha, sigma, torch.hypot(sigma, alpha * self.sigma_data)

    def target(
        self, x0: Float[Tensor, "b 3 h w"], eps: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 3 h w"]:
        alpha, sigma, n = self._scales(logsnr)
        return (sigma * x0 - alpha * self.sigma_data**2 * eps) / (n * self.sigma_data)

    def x0(
        self, output: Float[Tensor, "b 3 h w"], x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 3 h w"]:
        alpha, sigma, n = self._scales(logsnr)
        return alpha * (self.sigma_data / n) ** 2 * x_t + sigma * self.sigma_data / n * output

    def eps_factor(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        # an error e of the output is e sigma sigma_data / n of x0, hence e alpha sigma_data / n of epsilon
        return (logsnr + 2 * math.log(self.sigma_data)).sigmoid()

    def input_scale(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return 1 / self._scales(logsnr)[2].flatten()


class Flow(Parameterization):
    """The output is the velocity ``eps - x0`` of the straight path (rectified flow, arXiv 2403.03206, section 3).

    Flow matching's ``(1 - t) x0 + t eps`` at its time ``t = sigma / (alpha + sigma)`` is ``x_t / (alpha + sigma)``,
    and that is what the network is given.
    """

    def target(
        self, x0: Float[Tensor, "b 3 h w"], eps: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 3 h w"]:
        return eps - x0

    def x0(
        self, output: Float[Tensor, "b 3 h w"], x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Float[Tensor, "b 3 h w"]:
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        return (x_t - sigma * output) / (alpha + sigma)

    def eps_factor(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        # an error e of the velocity is t e of x0, hence (1 - t) e of epsilon, and 1 - t = sigmoid(logsnr / 2)
        return (logsnr / 2).sigmoid().square()

    def input_scale(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        alpha, sigma = alpha_sigma(logsnr)
        return 1 / (alpha + sigma)
