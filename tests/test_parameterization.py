"""Parameterizations: the target's x0 is x0, and the choice does not change the loss."""

import pytest
import torch
from torch import Tensor

from imagen.parameterization import X0, Epsilon, Parameterization, V
from imagen.schedule import alpha_sigma, diffuse

every_parameterization = pytest.mark.parametrize(
    "parameterization", [Epsilon(), V(), X0()], ids=lambda p: type(p).__name__
)


def pictures(logsnr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (len(logsnr), 3, 8, 8)
    x0 = torch.rand(shape, generator=generator, dtype=logsnr.dtype) * 2 - 1
    eps = torch.randn(shape, generator=generator, dtype=logsnr.dtype)
    return x0, eps, diffuse(x0, eps, logsnr)


def eps_loss(parameterization: Parameterization, x0_hat: Tensor, logsnr: Tensor) -> Tensor:
    """The epsilon-MSE of a network that says ``x0_hat``, taken in this parameterization's own output."""
    x0, eps, x_t = pictures(logsnr)
    alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
    # its output for x0_hat is the target of the pair (x0_hat, the noise that x0_hat leaves in x_t)
    output = parameterization.target(x0_hat, (x_t - alpha * x0_hat) / sigma, logsnr)
    error = (output - parameterization.target(x0, eps, logsnr)) ** 2
    return parameterization.eps_factor(logsnr) * error.mean((1, 2, 3))


@every_parameterization
def test_x0_of_the_target_is_x0(parameterization: Parameterization) -> None:
    logsnr = torch.linspace(-20, 20, 41, dtype=torch.float64)
    x0, eps, x_t = pictures(logsnr)
    output = parameterization.target(x0, eps, logsnr)
    assert torch.allclose(parameterization.x0(output, x_t, logsnr), x0, atol=1e-10)


@every_parameterization
def test_float32_is_enough(parameterization: Parameterization) -> None:
    logsnr = torch.linspace(-20, 20, 41)
    x0, eps, x_t = pictures(logsnr)
    error = parameterization.x0(parameterization.target(x0, eps, logsnr), x_t, logsnr) - x0
    # epsilon's x0 is (x_t - sigma eps) / alpha: rounding, 1e-7, over alpha is all that may be lost
    assert (error.abs().amax((1, 2, 3)) < 1e-6 / alpha_sigma(logsnr)[0]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_give_the_same_loss_for_the_same_x0(dtype: torch.dtype) -> None:
    logsnr = torch.linspace(-12, 12, 25, dtype=dtype)
    x0, _, _ = pictures(logsnr)
    x0_hat = 0.7 * x0 + 0.1
    losses = [eps_loss(p, x0_hat, logsnr) for p in (Epsilon(), V(), X0())]
    # in float64 to the bit of it; in float32 where (x_t - alpha x0_hat) / sigma itself is known to 1e-5
    keep = logsnr.abs() <= (12 if dtype == torch.float64 else 6)
    for loss in losses[1:]:
        assert torch.allclose(loss[keep], losses[0][keep], rtol=1e-5, atol=0)


def test_eps_factors_are_the_published_ones() -> None:
    logsnr = torch.tensor([-20.0, 0.0, 3.0, 20.0])
    snr = logsnr.exp()
    assert torch.equal(Epsilon().eps_factor(logsnr), torch.ones(4))
    assert torch.allclose(X0().eps_factor(logsnr), snr)
    assert torch.allclose(V().eps_factor(logsnr), snr / (snr + 1))


def test_v_is_the_derivative_of_x_t_along_the_angle() -> None:
    angle = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    x0, eps = torch.randn(2, 1, 3, 2, 2, dtype=torch.float64)
    derivative = torch.autograd.functional.jvp(lambda a: a.cos() * x0 + a.sin() * eps, angle, torch.ones_like(angle))[1]
    logsnr = -2 * angle.detach().tan().log()
    assert torch.allclose(V().target(x0, eps, logsnr), derivative)
