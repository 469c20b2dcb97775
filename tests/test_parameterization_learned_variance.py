"""Epsilon with a learned variance: the bound's steps against torch's own laws, and its optimum on Gaussian data."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from imagen.parameterization import EpsilonLearnedVariance
from imagen.parameterization.learned_variance import log_probability, step_nats
from imagen.schedule import CosineSchedule, LinearSchedule, alpha_sigma, diffuse

SCHEDULE = CosineSchedule(logsnr_min=-20.0, logsnr_max=20.0)
NEVER, ALWAYS = torch.zeros(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool)


def exact_normals(count: int, std: float) -> tuple[Tensor, Tensor]:
    """x0 and eps of count examples whose pixels have exactly the moments of N(0, std^2) and N(0, 1), uncorrelated."""
    samples = torch.randn(192, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples[:, 0] = 1  # makes the others sum to zero
    basis = torch.linalg.qr(samples).Q * 192**0.5
    x0, eps = basis[:, 1].view(1, 3, 8, 8), basis[:, 2].view(1, 3, 8, 8)
    return std * x0.repeat(count, 1, 1, 1), eps.repeat(count, 1, 1, 1)


def test_a_step_is_the_divergence_of_the_posterior_from_the_models() -> None:
    here = torch.linspace(-8, 8, 8, dtype=torch.float64)
    there = here + torch.linspace(0.1, 2, 8, dtype=torch.float64)
    x0, eps = exact_normals(8, 0.5)
    x_t = diffuse(x0, eps, here)
    guess, gamma = 0.7 * eps + 0.2, torch.rand_like(eps)
    alpha, sigma = alpha_sigma(here[:, None, None, None])
    alpha_to, sigma_to = alpha_sigma(there[:, None, None, None])
    beta = 1 - (alpha / alpha_to * sigma_to / sigma) ** 2  # of the lower bound of the variance over sigma_to^2

    def mean(noise: Tensor) -> Tensor:
        return alpha_to * (x_t - sigma * noise) / alpha + sigma_to * (1 - beta).sqrt() * noise

    std = (beta.sqrt().log() + (1 - gamma) * sigma_to.log() + gamma * sigma.log()).exp()
    expected = kl_divergence(Normal(mean(eps), beta.sqrt() * sigma_to), Normal(mean(guess), std))
    assert torch.allclose(step_nats(guess, gamma, x0, x_t, here, there, last=NEVER), expected, atol=1e-9)


@pytest.mark.parametrize("std", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("schedule", [SCHEDULE, LinearSchedule(logsnr_min=-20.0, logsnr_max=20.0)])
def test_the_optimum_on_gaussian_data_is_the_exact_posterior_variance(schedule: CosineSchedule, std: float) -> None:
    t = torch.linspace(0.06, 0.95, 8, dtype=torch.float64)
    here, there = schedule.logsnr(t), schedule.logsnr(t - 0.05)
    parameterization = EpsilonLearnedVariance(vlb_weight=0.001, num_vlb_steps=20)
    x0, eps = exact_normals(8, std)
    x_t = diffuse(x0, eps, here)
    (alpha, sigma), (alpha_to, sigma_to) = alpha_sigma(here), alpha_sigma(there)
    # E[eps | x_t], exact for these pixels as for the law
    best = (sigma / (alpha**2 * std**2 + sigma**2))[:, None, None, None] * x_t

    def loss(v: Tensor) -> Tensor:
        channels = v[:, None, None, None].expand(8, 3, 8, 8)
        return parameterization.extra_loss(torch.cat([best, channels], dim=1), x0, x_t, t, schedule).sum()

    v = torch.zeros(8, dtype=torch.float64)
    for _ in range(30):  # Newton's method; the loss of each level is its own v's alone, and convex
        slope = torch.autograd.functional.jacobian(loss, v)
        v = v - slope / torch.autograd.functional.hvp(loss, v, torch.ones_like(v))[1]
    variance, variance_to = alpha**2 * std**2 + sigma**2, alpha_to**2 * std**2 + sigma_to**2
    posterior = variance_to - (alpha / alpha_to * variance_to) ** 2 / variance  # of jointly Gaussian x_there and x_t
    lower = sigma_to**2 * -torch.expm1(here - there)
    learned = lower * (sigma / sigma_to) ** (v + 1)
    assert torch.allclose(learned, posterior, rtol=1e-6)
    assert (v.abs() <= 1).all()


def test_the_bound_teaches_the_variance_alone_and_the_error_epsilon_alone() -> None:
    parameterization = EpsilonLearnedVariance(vlb_weight=0.001, num_vlb_steps=1000)
    t = torch.linspace(0, 1, 8)
    logsnr = SCHEDULE.logsnr(t)
    x0, eps = (part.float() for part in exact_normals(8, 0.3))
    x0 = ((x0.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    output = torch.zeros(8, 6, 8, 8, requires_grad=True)
    extra = parameterization.extra_loss(output, x0, diffuse(x0, eps, logsnr), t, SCHEDULE)
    (gradient,) = torch.autograd.grad(extra.sum(), output)
    assert gradient.isfinite().all()
    assert (gradient[:, :3] == 0).all()
    assert (gradient[1:-1, 3:] != 0).any(dim=(1, 2, 3)).all()
    error = parameterization.error(output, x0, eps, logsnr)
    (gradient,) = torch.autograd.grad(error.sum(), output)
    assert (gradient[:, 3:] == 0).all()
    assert torch.allclose(error, eps.square().mean((1, 2, 3)))


def test_the_bound_is_weighted_per_step_of_it() -> None:
    t = torch.full((8,), 0.5, dtype=torch.float64)
    x0, eps = exact_normals(8, 0.3)
    x_t = diffuse(x0, eps, SCHEDULE.logsnr(t))
    output = torch.cat([0.9 * eps, torch.zeros_like(eps)], dim=1)

    def extra(vlb_weight: float, num_vlb_steps: int) -> Tensor:
        parameterization = EpsilonLearnedVariance(vlb_weight=vlb_weight, num_vlb_steps=num_vlb_steps)
        return parameterization.extra_loss(output, x0, x_t, t, SCHEDULE)

    assert torch.allclose(extra(0.002, 100), 2 * extra(0.001, 100))
    step = step_nats(
        0.9 * eps, torch.full_like(eps, 0.5), x0, x_t, SCHEDULE.logsnr(t), SCHEDULE.logsnr(t - 0.01), last=NEVER
    )
    assert torch.allclose(extra(0.001, 100), 0.1 * step.mean((1, 2, 3)))


def test_the_last_step_is_the_discretized_likelihood_of_x0() -> None:
    t = torch.full((8,), 0.004, dtype=torch.float64)
    here, there = SCHEDULE.logsnr(t), SCHEDULE.logsnr(torch.zeros_like(t))
    x0, eps = exact_normals(8, 0.3)
    x0 = ((x0.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    x_t, gamma = diffuse(x0, eps, here), torch.full_like(eps, 0.9)
    alpha, sigma = alpha_sigma(here[:, None, None, None])
    _, sigma_to = alpha_sigma(there[:, None, None, None])
    std = (sigma_to**0.1 * sigma**0.9).expand_as(x0)
    expected = -log_probability(x0, (x_t - sigma * 0.5 * eps) / alpha, std)
    assert torch.allclose(step_nats(0.5 * eps, gamma, x0, x_t, here, there, last=ALWAYS), expected)


def test_the_256_levels_share_the_whole_mass() -> None:
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(1, 1, 16, 16).expand(4, 3, 16, 16)
    mean = torch.tensor([-1.2, -0.3, 0.0, 0.9], dtype=torch.float64)[:, None, None, None].expand_as(levels)
    for std in (1e-3, 0.02, 0.7):
        mass = log_probability(levels, mean, torch.full_like(mean, std)).exp()
        assert torch.allclose(mass.sum((2, 3)), torch.ones(4, 3).double(), atol=1e-9)


def test_the_discretized_likelihood_holds_in_the_far_tails() -> None:
    x0 = torch.tensor([-1.0, 1.0, 0.0]).view(1, 3, 1, 1)
    std = torch.full((1, 3, 1, 1), 1e-4, requires_grad=True)
    nats = log_probability(x0, torch.full_like(x0, 0.5), std)
    # an outlying value is told from another: nothing is clipped
    nearest = (torch.tensor([-1 + 1 / 255, 1 - 1 / 255, 1 / 255]).view(1, 3, 1, 1) - 0.5) / 1e-4
    assert torch.allclose(nats, -(nearest**2) / 2, rtol=1e-3)
    (gradient,) = torch.autograd.grad(nats.sum(), std)
    assert torch.allclose(gradient, nearest**2 / 1e-4, rtol=1e-3)


def test_gamma_is_read_within_its_bounds() -> None:
    parameterization = EpsilonLearnedVariance(vlb_weight=0.001, num_vlb_steps=1000)
    v = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    eps, x_t = torch.randn(2, 5, 3, 2, 2)
    prediction = parameterization.read(torch.cat([eps, v], dim=1), x_t, torch.zeros(5))
    assert prediction.gamma is not None
    assert prediction.gamma[:, 0, 0, 0].tolist() == [0, 0, 0.5, 1, 1]
    assert torch.allclose(prediction.x0, x_t * 2**0.5 - eps)
