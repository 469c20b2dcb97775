"""Euler's method along the flow is DDIM; Heun's is of order 2, and of fewer calls than that only at the clean end."""

import pytest
import torch
from oracle import GaussianOracle, conditioning
from samplers import COSINE, MAKE, even, normal, ode_error, order
from torch import Tensor

from imagen.sampler import DDIM, FlowEuler
from imagen.schedule import alpha_sigma
from imagen.spacing import Karras, UniformLogSNR, UniformTime
from imagen.types import Conditioning, Prediction


def with_renoise(x_t: Tensor, logsnr: Tensor, cond: Conditioning) -> Prediction:
    x0 = GaussianOracle(0.3, 0.5)(x_t, logsnr, cond).x0
    return Prediction(x0, renoise_x0=x0 - 0.2 * torch.sin(logsnr)[:, None, None, None])


@pytest.mark.parametrize("denoise", [GaussianOracle(0.3, 0.5), with_renoise], ids=["plain", "cfg++"])
@pytest.mark.parametrize(
    "spacing",
    [
        UniformTime(),
        UniformLogSNR(logsnr_min=-20.0, logsnr_max=20.0),
        Karras(rho=7.0, logsnr_min=-20.0, logsnr_max=20.0),
    ],
    ids=lambda s: type(s).__name__,
)
def test_flow_euler_is_ddim(denoise: object, spacing: UniformTime | UniformLogSNR | Karras) -> None:
    x, cond = normal(2, 3, 4, 4), conditioning(2)
    for grid in (spacing.grid(COSINE, 30), even(-2, 3, 10)):
        ours, ddim = (s(denoise, x, grid, cond, []) for s in (FlowEuler(num_steps=1), DDIM(num_steps=1, eta=0.0)))
        assert torch.allclose(ours, ddim, rtol=0, atol=1e-12)


def test_flow_euler_follows_the_straight_paths() -> None:
    """In x / (alpha + sigma) and the flow's time, a step is the velocity times the change of time."""
    grid, x, cond, oracle = even(-1, 1, 1), normal(2, 3, 4, 4), conditioning(2), GaussianOracle(0.3, 0.5)
    alpha, sigma = alpha_sigma(grid)
    scale, time = alpha + sigma, sigma / (alpha + sigma)
    velocity = (x / scale[0] - oracle(x, grid[:1], cond).x0) / time[0]
    expected = x / scale[0] + (time[1] - time[0]) * velocity
    assert torch.allclose(FlowEuler(num_steps=1)(oracle, x, grid, cond, []), scale[1] * expected, atol=1e-12)


@pytest.mark.parametrize(("name", "power"), [("flow_euler", 1.0), ("flow_heun", 2.0)])
@pytest.mark.parametrize("std", [0.5, 1.5])
def test_order_of_convergence(name: str, power: float, std: float) -> None:
    assert order(lambda n: ode_error(MAKE[name](n), even(-8, 8, n), std), 40) == pytest.approx(power, abs=0.05)


def test_flow_heun_is_the_textbook_s_step() -> None:
    """One step equals the textbook's, in the flow's own variables."""
    grid, x, cond, oracle = even(-1, 1, 1), normal(2, 3, 4, 4), conditioning(2), GaussianOracle(0.3, 0.5)
    alpha, sigma = alpha_sigma(grid)
    scale, time = alpha + sigma, sigma / (alpha + sigma)

    def velocity(y: Tensor, i: int) -> Tensor:
        return (y - oracle(scale[i] * y, grid[i : i + 1], cond).x0) / time[i]

    y, step = x / scale[0], time[1] - time[0]
    first = velocity(y, 0)
    expected = y + step / 2 * (first + velocity(y + step * first, 1))
    assert torch.allclose(MAKE["flow_heun"](1)(oracle, x, grid, cond, []), scale[1] * expected, atol=1e-12)


def test_error_on_the_paper_grid() -> None:
    for steps, bound in ((20, 0.05), (80, 0.003)):
        assert ode_error(MAKE["flow_heun"](steps), UniformTime().grid(COSINE, steps), 0.5) < bound
