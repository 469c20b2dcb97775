"""UniPC: an order above its predictor's, the weights of its polynomials, order 1 at the ends."""

import math

import pytest
import torch
from oracle import GaussianOracle, conditioning
from samplers import COSINE, even, normal, ode_error, order
from torch import Tensor

from imagen.errors import UserError
from imagen.sampler import DDIM, UniPC
from imagen.sampler.unipc import weights
from imagen.schedule import alpha_sigma
from imagen.spacing import UniformTime
from imagen.types import Conditioning, Prediction


@pytest.mark.parametrize("std", [0.5, 1.5])
@pytest.mark.parametrize("power", [1, 2, 3])
def test_the_corrector_raises_the_order_by_one(std: float, power: int) -> None:
    # up to the last step, which is of order 1
    def error(num_steps: int) -> float:
        return ode_error(UniPC(num_steps=num_steps, order=power), even(-8, 8, num_steps), std, upto=-2)

    assert order(error, 80) > power + 0.8


@pytest.mark.parametrize(("power", "bounds"), [(2, (0.01, 0.003)), (3, (0.01, 0.0015))])
def test_error_on_the_paper_grid(power: int, bounds: tuple[float, float]) -> None:
    for steps, bound in zip((20, 80), bounds, strict=True):
        assert ode_error(UniPC(num_steps=steps, order=power), UniformTime().grid(COSINE, steps), 0.5) < bound


@pytest.mark.parametrize("h", [1e-4, 0.1, 2.0, 15.0])
@pytest.mark.parametrize("places", [[-0.7, 1.0], [-0.7, -1.9, 1.0], [-0.4, -0.6]])
def test_weights_are_exact_for_polynomials(h: float, places: list[float]) -> None:
    at = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    density = torch.exp(h * (at - 1))
    for power in range(1, len(places) + 1):
        mean = (torch.trapezoid(at**power * density, at) / torch.trapezoid(density, at)).item()
        ours = sum(weight * place**power for weight, place in zip(weights(places, h), places, strict=True))
        assert ours == pytest.approx(mean, rel=1e-8)


def test_one_step_is_ddim() -> None:
    x, grid, cond, oracle = (
        normal(2, 3, 4, 4),
        torch.tensor([-3.0, math.inf]).double(),
        conditioning(2),
        GaussianOracle(0.3, 0.5),
    )
    assert torch.equal(
        UniPC(num_steps=1, order=3)(oracle, x, grid, cond, []), DDIM(num_steps=1, eta=0.0)(oracle, x, grid, cond, [])
    )


def test_the_corrector_sees_the_new_x0_before_the_next_step() -> None:
    """Where x0 depends on the level alone, linearly in log-SNR, x after each corrected step is the exact solution."""
    states: list[Tensor] = []
    grid, x, cond = torch.tensor([-2.0, -1.5, -0.6, 0.1, math.inf]).double(), normal(1, 3, 4, 4), conditioning(1)

    def denoise(x_t: Tensor, logsnr: Tensor, cond: Conditioning) -> Prediction:
        states.append(x_t)
        return Prediction((0.3 * logsnr)[:, None, None, None].expand_as(x_t))

    UniPC(num_steps=4, order=3)(denoise, x, grid, cond, [])
    fine = torch.linspace(-0.6, 0.1, 20_001, dtype=torch.float64)
    weight = torch.exp(fine / 2)
    mean = 0.3 * torch.trapezoid(weight * fine, fine) / torch.trapezoid(weight, fine)
    (alpha, alpha_end), (sigma, sigma_end) = alpha_sigma(grid[2:4])
    # from the third level on, the predictor's polynomial is the line itself: no more is to be corrected
    expected = alpha_end * mean + sigma_end * (states[2] - alpha * mean) / sigma
    assert torch.allclose(states[3], expected, atol=1e-3)


@pytest.mark.parametrize("power", [0, 4])
def test_orders_it_has_not_are_refused(power: int) -> None:
    with pytest.raises(UserError, match=f"order={power}"):
        UniPC(num_steps=5, order=power)
