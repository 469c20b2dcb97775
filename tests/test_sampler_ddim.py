"""DDIM: order 1, DDPM at eta 1."""

import pytest
import torch
from oracle import GaussianOracle, conditioning, generators
from samplers import COSINE, MAKE, even, normal, ode_error, order

from imagen.errors import UserError
from imagen.sampler import DDIM, DDPM
from imagen.spacing import UniformTime


@pytest.mark.parametrize("std", [0.5, 1.5])
def test_order_of_convergence(std: float) -> None:
    assert order(lambda n: ode_error(MAKE["ddim"](n), even(-8, 8, n), std), 40) == pytest.approx(1, abs=0.05)


def test_error_on_the_paper_grid() -> None:
    for steps, bound in ((20, 0.25), (320, 0.02)):
        assert ode_error(DDIM(num_steps=steps, eta=0.0), UniformTime().grid(COSINE, steps), 0.5) < bound


def test_eta_1_is_ddpm_with_gamma_0() -> None:
    ddpm, ddim = DDPM(num_steps=12, gamma=0.0), DDIM(num_steps=12, eta=1.0)
    x, grid, cond, oracle = (
        normal(2, 3, 8, 8),
        UniformTime().grid(COSINE, 12),
        conditioning(2),
        GaussianOracle(0.3, 0.5),
    )
    one = ddpm(oracle, x, grid, cond, generators(2))
    assert torch.allclose(one, ddim(oracle, x, grid, cond, generators(2)), atol=1e-12)


def test_an_eta_outside_0_to_1_is_refused() -> None:
    with pytest.raises(UserError, match="eta=1"):
        DDIM(num_steps=5, eta=1.5)
