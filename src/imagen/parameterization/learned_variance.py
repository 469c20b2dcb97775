"""Epsilon with a learned reverse variance: the hybrid loss of Improved DDPM (arXiv 2102.09672, section 3.1)."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imagen.errors import UserError
from imagen.parameterization.targets import Epsilon
from imagen.schedule import NoiseSchedule, alpha_sigma
from imagen.types import Prediction

HALF_LEVEL = 1 / 255
"""Half the distance between two of the 256 values that a pixel in [-1, 1] can have."""


class EpsilonLearnedVariance(Epsilon):
    """The first three channels are epsilon, the others v, with the reverse variance at ``gamma = (v + 1) / 2``.

    ``gamma`` interpolates the log of an ancestral step's variance between its bounds (equation 15). Beside the error of
    epsilon, ``vlb_weight`` times the variational bound of ``num_vlb_steps`` even steps of t is made small (equation
    16): nats per value, one step per example. No gradient of it reaches epsilon. The steps taken in sampling are free.
    """

    out_channels = 6
    learns_variance = True

    def __init__(self, *, vlb_weight: float, num_vlb_steps: int) -> None:
        if not 0 < vlb_weight < math.inf:
            raise UserError(f"vlb_weight={vlb_weight} must be a positive number; nothing else teaches the variance.")
        if num_vlb_steps < 2:
            raise UserError(f"num_vlb_steps={num_vlb_steps} must be at least 2, e.g. 1000.")
        self.vlb_weight = vlb_weight
        self.num_vlb_steps = num_vlb_steps

    def read(
        self, output: Float[Tensor, "b outputs h w"], x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"]
    ) -> Prediction:
        """x0, and gamma held in [0, 1]: training leaves it free, so that its gradient never dies outside."""
        eps, gamma = _split(output)
        return Prediction(self.x0(eps, x_t, logsnr), gamma=gamma.clamp(0, 1))

    def error(
        self,
        output: Float[Tensor, "b outputs h w"],
        x0: Float[Tensor, "b 3 h w"],
        eps: Float[Tensor, "b 3 h w"],
        logsnr: Float[Tensor, " b"],
    ) -> Float[Tensor, " b"]:
        return super().error(_split(output)[0], x0, eps, logsnr)

    def extra_loss(
        self,
        output: Float[Tensor, "b outputs h w"],
        x0: Float[Tensor, "b 3 h w"],
        x_t: Float[Tensor, "b 3 h w"],
        t: Float[Tensor, " b"],
        schedule: NoiseSchedule,
    ) -> Float[Tensor, " b"]:
        """The weighted bound, estimated at each example's own step, from t to ``t - 1 / num_vlb_steps``."""
        eps, gamma = _split(output)
        here, there = schedule.logsnr(t), schedule.logsnr((t - 1 / self.num_vlb_steps).clamp(min=0))
        terms = step_nats(eps.detach(), gamma, x0, x_t, here, there, last=t <= 1 / self.num_vlb_steps)
        return self.vlb_weight * self.num_vlb_steps * terms.mean(dim=(1, 2, 3))


def step_nats(
    eps: Float[Tensor, "b 3 h w"],
    gamma: Float[Tensor, "b 3 h w"],
    x0: Float[Tensor, "b 3 h w"],
    x_t: Float[Tensor, "b 3 h w"],
    here: Float[Tensor, " b"],
    there: Float[Tensor, " b"],
    *,
    last: Bool[Tensor, " b"],
) -> Float[Tensor, "b 3 h w"]:
    """What the reverse step from log-SNR ``here`` to ``there`` adds to the bound, in nats per value (equations 4 to 7).

    Between: ``KL(q(x_there | x_t, x0) || p(x_there | x_t))``. ``last`` marks the steps to the picture itself, whose
    values are discrete: ``-log p(x0 | x_t)``.
    """
    alpha, sigma = alpha_sigma(here[:, None, None, None])
    # sigma_here^2 / sigma_there^2, the upper bound of the variance over the lower, at the power gamma
    log_variance = gamma * torch.log(sigma**2 * (1 + there.exp()[:, None, None, None]))
    # the means differ by expm1(there - here) times epsilon's squared error, in units of the lower bound
    error = (eps - (x_t - alpha * x0) / sigma).square()
    squared = 1 + torch.expm1(there - here)[:, None, None, None] * error
    divergence = (log_variance - 1 + squared * torch.exp(-log_variance)) / 2
    # to the clean end the step is the whole of what is left, and the schedule's own end its smallest variance
    std = alpha_sigma(there[:, None, None, None])[1] * torch.exp(log_variance / 2)
    # steps that are not the last go in as x0 itself: where() keeps out their values, but not an undefined gradient
    is_last = last[:, None, None, None]
    mean, std = torch.where(is_last, (x_t - sigma * eps) / alpha, x0), torch.where(is_last, std, 1.0)
    return torch.where(is_last, -log_probability(x0, mean, std), divergence)


def log_probability(
    x0: Float[Tensor, "b 3 h w"], mean: Float[Tensor, "b 3 h w"], std: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b 3 h w"]:
    """Log of the mass that a normal distribution has within half a level of x0, the outer levels reaching to infinity.

    The discretized decoder of DDPM (arXiv 2006.11239, equation 13), exact in its far tails too.
    """
    # float64, since in float32 the slope of log_ndtr is lost in its tails
    value, mean, std = x0.double(), mean.double(), std.double()
    # 100 is as good as infinity here, and has a slope
    low = (torch.where(value <= -1 + HALF_LEVEL, -100.0, value - HALF_LEVEL) - mean) / std
    high = (torch.where(value >= 1 - HALF_LEVEL, 100.0, value + HALF_LEVEL) - mean) / std
    # an interval on the right of the mean has the mass of its mirror image, whose logs do not cancel
    mirrored = low + high > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    low, high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return (high + torch.log(-torch.expm1(low - high))).to(x0.dtype)


def _split(output: Float[Tensor, "b outputs h w"]) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]]:
    """Epsilon and gamma, of a raw output."""
    eps, v = output.chunk(2, dim=1)
    return eps, (v + 1) / 2
