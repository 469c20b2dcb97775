"""What the tests of samplers share: one of each, noise, and the error against the closed form."""

import math
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from oracle import GaussianOracle, conditioning, generators
from torch import Tensor

from imagen.sampler import (
    DDIM,
    DDPM,
    DPMSolverPP2M,
    FlowEuler,
    FlowHeun,
    Heun,
    Sampler,
    SDEDPMSolverPP2M,
    UniPC,
)
from imagen.schedule import CosineSchedule, alpha_sigma
from imagen.types import Denoise

COSINE = CosineSchedule(logsnr_min=-20.0, logsnr_max=20.0)


def heun(num_steps: int, s_churn: float = 0.0) -> Heun:
    return Heun(num_steps=num_steps, s_churn=s_churn, s_min=0.05, s_max=50.0, s_noise=1.0)


MAKE: dict[str, Callable[[int], Sampler]] = {
    "ddpm": lambda n: DDPM(num_steps=n, gamma=0.3),
    "ddim": lambda n: DDIM(num_steps=n, eta=0.0),
    "ddim_eta": lambda n: DDIM(num_steps=n, eta=0.5),
    "dpmpp_2m": lambda n: DPMSolverPP2M(num_steps=n),
    "dpmpp_2m_sde": lambda n: SDEDPMSolverPP2M(num_steps=n),
    "unipc_2": lambda n: UniPC(num_steps=n, order=2),
    "unipc_3": lambda n: UniPC(num_steps=n, order=3),
    "heun": heun,
    "heun_churn": lambda n: heun(n, s_churn=0.1 * n),
    "flow_euler": lambda n: FlowEuler(num_steps=n),
    "flow_heun": lambda n: FlowHeun(num_steps=n),
}
STOCHASTIC = {"ddpm", "ddim_eta", "dpmpp_2m_sde", "heun_churn"}
every_sampler = pytest.mark.parametrize("name", MAKE)
every_solver = pytest.mark.parametrize("name", [name for name in MAKE if name not in STOCHASTIC])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def even(start: float, end: float, num_steps: int) -> Tensor:
    """A grid of even steps of log-SNR, finite at both ends, so that halving it halves every step."""
    return torch.linspace(start, end, num_steps + 1, dtype=torch.float64)


def ode_error(sampler: Sampler, grid: Tensor, std: float, upto: int = -1) -> float:
    """Largest error against the exact flow at a level of the grid, in units of the data's standard deviation."""
    oracle, cond, x = GaussianOracle(0.3, std), conditioning(2), normal(2, 3, 4, 4)
    states = [x]
    sampler(oracle, x, grid, cond, [], lambda i, moved, prediction: states.append(moved))
    exact = oracle.flow(x, grid[0].item(), grid[upto].item(), cond)
    return ((states[upto] - exact).abs().max() / std).item()


class Impulses:
    """Noise that is 1 in one pixel of a picture and 0 in all others: in the first pixel at the first draw, and so on.

    The closed form is linear, pixel by pixel. So are samplers along it, and each pixel shows what became of one draw:
    the sum of their squares is the variance of a sample, exactly. No draw reaches the last pixel, which is the mean.
    """

    side = 16

    def __init__(self) -> None:
        self.draws = 0

    def __call__(
        self, generators: list[torch.Generator], shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        assert shape == (3, self.side, self.side)
        noise = torch.zeros(3 * self.side**2, dtype=dtype)
        noise[self.draws] = 1
        self.draws += 1
        assert self.draws < len(noise), "a pixel each, and one that none reaches"
        return noise.view(1, *shape)


def law_error(
    walk: Callable[[Denoise, Tensor], Tensor], start: float, end: float, std: float, dtype: torch.dtype = torch.float64
) -> float:
    """How far the mean and the standard deviation at log-SNR ``end`` are from those of data N(0.3, std^2), exactly.

    ``walk`` takes the closed form and an x at log-SNR ``start`` with its right law; the larger of the two errors, in
    units of ``std``.
    """
    oracle, noise = GaussianOracle(0.3, std), Impulses()
    (alpha, alpha_end), _ = alpha_sigma(torch.tensor([start, end], dtype=torch.float64))
    with patch("imagen.sampler.base.normal_from", noise):
        x = 0.3 * alpha + oracle.deviation(start) * noise([], (3, noise.side, noise.side), torch.float64)
        pixels = walk(oracle, x.to(dtype)).double().flatten()
    mean, deviation = pixels[-1], (pixels - pixels[-1]).square().sum().sqrt()
    return max((mean - 0.3 * alpha_end).abs().item(), (deviation - oracle.deviation(end)).abs().item()) / std


def law_error_on(sampler: Sampler, grid: Tensor, std: float) -> float:
    """The same for a sampler and a grid."""
    start, end = grid[0].item(), grid[-1].item()
    return law_error(lambda oracle, x: sampler(oracle, x, grid, conditioning(1), generators(1)), start, end, std)


def order(error: Callable[[int], float], num_steps: int) -> float:
    """By what power of the step's length an error falls, measured by halving it."""
    return math.log2(error(num_steps) / error(2 * num_steps))
