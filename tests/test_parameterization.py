"""Parameterizations: the target's x0 is x0, and the choice does not change the loss."""

import pytest
import torch
from torch import Tensor

from imagen.errors import UserError
from imagen.parameterization import EDM, X0, Epsilon, EpsilonLearnedVariance, Flow, Parameterization, V
from imagen.schedule import alpha_sigma, diffuse

LEARNED_VARIANCE = EpsilonLearnedVariance(vlb_weight=0.001, num_vlb_steps=1000)
PARAMETERIZATIONS = [Epsilon(), V(), X0(), EDM(sigma_data=0.5), Flow(), LEARNED_VARIANCE]
every_parameterization = pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)


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
    losses = [eps_loss(p, x0_hat, logsnr) for p in PARAMETERIZATIONS]
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
    assert torch.allclose(EDM(sigma_data=0.5).eps_factor(logsnr), snr / (snr + 4))


@every_parameterization
def test_a_loss_is_the_error_of_x0_read_back(parameterization: Parameterization) -> None:
    """``error`` in epsilon's units is SNR times the squared error of the x0 that the same output is read as."""
    logsnr = torch.linspace(-12, 12, 25, dtype=torch.float64)
    x0, eps, x_t = pictures(logsnr)
    output = torch.randn_like(x0).repeat(1, parameterization.out_channels // 3, 1, 1)
    prediction = parameterization.read(output, x_t, logsnr)
    expected = logsnr.exp() * (prediction.x0 - x0).square().mean((1, 2, 3))
    assert torch.allclose(parameterization.error(output, x0, eps, logsnr), expected, rtol=1e-7)


@pytest.mark.parametrize("sigma_data", [0.25, 0.5, 1.0])
def test_edm_is_the_published_preconditioning(sigma_data: float) -> None:
    parameterization = EDM(sigma_data=sigma_data)
    logsnr = torch.linspace(-12, 12, 25, dtype=torch.float64)
    _, _, x_t = pictures(logsnr)
    alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
    noisy, level = x_t / alpha, sigma / alpha  # EDM's own frame: x0 + level * eps
    total = level**2 + sigma_data**2
    output = torch.randn_like(x_t)
    denoised = sigma_data**2 / total * noisy + level * sigma_data / total.sqrt() * output
    assert torch.allclose(parameterization.x0(output, x_t, logsnr), denoised)
    scaled = parameterization.input_scale(logsnr)[:, None, None, None] * x_t
    assert torch.allclose(scaled, noisy / total.sqrt())


def test_edm_at_unit_data_is_minus_v_and_scales_nothing() -> None:
    logsnr = torch.linspace(-20, 20, 41, dtype=torch.float64)
    x0, eps, _ = pictures(logsnr)
    edm = EDM(sigma_data=1.0)
    assert torch.allclose(edm.target(x0, eps, logsnr), -V().target(x0, eps, logsnr))
    assert torch.allclose(edm.eps_factor(logsnr), V().eps_factor(logsnr))
    assert torch.allclose(edm.input_scale(logsnr), torch.ones(41).double())


def test_edm_keeps_input_and_target_at_unit_variance() -> None:
    logsnr = torch.linspace(-20, 20, 9, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 9, 3, 64, 64, generator=generator, dtype=torch.float64)
    x0 = 0.5 * x0
    edm = EDM(sigma_data=0.5)
    scaled = edm.input_scale(logsnr)[:, None, None, None] * diffuse(x0, eps, logsnr)
    assert torch.allclose(scaled.std((1, 2, 3)), torch.ones(9).double(), atol=0.02)
    assert torch.allclose(edm.target(x0, eps, logsnr).std((1, 2, 3)), torch.ones(9).double(), atol=0.02)


def test_flow_is_the_velocity_of_the_straight_path() -> None:
    flow = Flow()
    logsnr = torch.linspace(-12, 12, 25, dtype=torch.float64)
    x0, eps, x_t = pictures(logsnr)
    alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
    time = sigma / (alpha + sigma)
    path = (1 - time) * x0 + time * eps
    assert torch.allclose(flow.input_scale(logsnr)[:, None, None, None] * x_t, path)
    velocity = torch.randn_like(x0)
    assert torch.allclose(flow.x0(velocity, x_t, logsnr), path - time * velocity)
    assert torch.allclose(flow.eps_factor(logsnr), (1 - time.flatten()) ** 2)


def test_unfit_values_are_named() -> None:
    with pytest.raises(UserError, match="sigma_data=0"):
        EDM(sigma_data=0.0)
    with pytest.raises(UserError, match=r"vlb_weight=0\.0"):
        EpsilonLearnedVariance(vlb_weight=0.0, num_vlb_steps=1000)
    with pytest.raises(UserError, match="num_vlb_steps=1 "):
        EpsilonLearnedVariance(vlb_weight=0.001, num_vlb_steps=1)


def test_v_is_the_derivative_of_x_t_along_the_angle() -> None:
    angle = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    x0, eps = torch.randn(2, 1, 3, 2, 2, dtype=torch.float64)
    derivative = torch.autograd.functional.jvp(lambda a: a.cos() * x0 + a.sin() * eps, angle, torch.ones_like(angle))[1]
    logsnr = -2 * angle.detach().tan().log()
    assert torch.allclose(V().target(x0, eps, logsnr), derivative)
