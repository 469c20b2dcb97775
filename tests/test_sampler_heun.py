"""Heun's method: order 2, EDM's algorithm 2 line by line, the law under churn, plain steps where time falls far."""

import math
from itertools import pairwise

import pytest
import torch
from oracle import GaussianOracle, conditioning, generators
from samplers import COSINE, even, heun, law_error_on, normal, ode_error, order
from torch import Tensor

from imagen.errors import UserError
from imagen.randomness import normal_from
from imagen.sampler import Heun
from imagen.sampler.base import level_of
from imagen.schedule import CosineSchedule
from imagen.spacing import Karras, UniformTime


@pytest.mark.parametrize("std", [0.5, 1.5])
def test_order_of_convergence(std: float) -> None:
    assert order(lambda n: ode_error(heun(n), even(-8, 8, n), std), 40) == pytest.approx(2, abs=0.05)


def test_error_on_the_paper_grid() -> None:
    for steps, bound in ((20, 0.02), (320, 3e-4)):
        assert ode_error(heun(steps), UniformTime().grid(COSINE, steps), 0.5) < bound


def test_on_edm_s_grid_every_step_but_the_last_is_corrected() -> None:
    oracle = GaussianOracle(0.3, 0.5)
    schedule = CosineSchedule(logsnr_min=-2 * math.log(80), logsnr_max=-2 * math.log(0.002))
    heun(18)(
        oracle,
        normal(1, 3, 2, 2),
        Karras(rho=7.0, logsnr_min=-20.0, logsnr_max=20.0).grid(schedule, 18),
        conditioning(1),
        [],
    )
    assert len(oracle.batches) == 35  # EDM, section 3


def edm_algorithm_2(sampler: Heun, x: Tensor, sigmas: list[float], noise_of: list[torch.Generator]) -> Tensor:
    """The paper's lines in its own variables: x / alpha, and sigma / alpha as the time."""

    def slope(x: Tensor, sigma: float) -> Tensor:
        level = level_of(-2 * math.log(sigma))
        logsnr = torch.full((len(x),), level.logsnr, dtype=torch.float64)
        return (x - GaussianOracle(0.3, 0.5)(level.alpha * x, logsnr, conditioning(len(x))).x0) / sigma

    for t, t_next in pairwise(sigmas):
        gamma = sampler.churn if sampler.s_min <= t <= sampler.s_max else 0.0
        t_hat = t + gamma * t
        if gamma > 0:
            noise = sampler.s_noise * normal_from(noise_of, tuple(x.shape[1:]), torch.float64)
            x = x + math.sqrt(t_hat**2 - t**2) * noise
        d = slope(x, t_hat)
        x_next = x + (t_next - t_hat) * d
        if t_next != 0:
            x_next = x + (t_next - t_hat) * (d + slope(x_next, t_next)) / 2
        x = x_next
    return x


def test_churn_is_edm_s_algorithm_2() -> None:
    sampler = Heun(num_steps=10, s_churn=2.0, s_min=0.1, s_max=3.0, s_noise=1.01)
    assert sampler.churn == 0.2
    sigmas = [10.0, 5.0, 2.5, 1.0, 0.6, 0.3, 0.15, 0.08, 0.03, 0.0]
    grid = torch.tensor([math.inf if s == 0 else -2 * math.log(s) for s in sigmas], dtype=torch.float64)
    x = normal(2, 3, 4, 4)
    ours = sampler(GaussianOracle(0.3, 0.5), x, grid, conditioning(2), generators(2))
    theirs = edm_algorithm_2(sampler, x / level_of(grid[0].item()).alpha, sigmas, generators(2))
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_churn_is_at_most_the_paper_s() -> None:
    assert heun(10, s_churn=100.0).churn == math.sqrt(2) - 1


@pytest.mark.parametrize(("std", "end"), [(0.5, 1), (0.5, 8), (1.5, 8)])
def test_under_churn_the_law_is_right_to_order_2(std: float, end: int) -> None:
    def error(num_steps: int) -> float:
        return law_error_on(heun(num_steps, s_churn=8.0), even(-8, end, num_steps), std)

    assert error(40) < 0.015
    assert order(error, 40) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"s_churn": -1.0}, "s_churn=-1"), ({"s_noise": -1.0}, "s_noise=-1"), ({"s_min": 60.0}, "s_min=60.*s_max=50")],
)
def test_unfit_values_are_named(setting: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Heun(**{"num_steps": 5, "s_churn": 0.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.0, **setting})
