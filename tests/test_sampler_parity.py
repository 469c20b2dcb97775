"""Parity with diffusers' samplers on its discrete grid, where they overlap with ours."""

import math

import pytest
import torch
from oracle import conditioning, generators
from samplers import MAKE, normal
from torch import Tensor

from imagen.randomness import normal_from
from imagen.sampler import DDIM, DDPM, UniPC
from imagen.schedule import alpha_sigma
from imagen.types import Conditioning, Prediction

ALPHA_BAR = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
DISCRETE = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
TIMESTEPS = torch.arange(999, 0, -50)
GRID = torch.cat([ALPHA_BAR[TIMESTEPS].logit(), torch.tensor([math.inf], dtype=torch.float64)])

diffusers_array_warning = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def model(x_t: Tensor, logsnr: Tensor, cond: Conditioning) -> Prediction:
    """A denoiser without meaning, nonlinear in x and in log-SNR, whose pixels depend on their neighbours."""
    level = logsnr[:, None, None, None]
    return Prediction(0.8 * torch.tanh(x_t + 0.5 * x_t.roll(1, -1) + 0.1 * level) + 0.1 * torch.sin(level))


def epsilon_at(x_t: Tensor, logsnr: Tensor) -> Tensor:
    """The noise that the same denoiser finds."""
    alpha, sigma = alpha_sigma(logsnr)
    return (x_t - alpha * model(x_t, logsnr.expand(len(x_t)), conditioning(len(x_t))).x0) / sigma


def model_epsilon(x_t: Tensor, timestep: int) -> Tensor:
    """The same as an epsilon model of discrete time."""
    return epsilon_at(x_t, ALPHA_BAR[timestep].logit())


def stepped(scheduler, x: Tensor, **step) -> Tensor:
    for timestep in scheduler.timesteps:
        x = scheduler.step(model_epsilon(x, int(timestep)), timestep, x, **step).prev_sample
    return x


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_parity_with_diffusers_ddim(eta: float) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(**DISCRETE, clip_sample=False)
    scheduler.set_timesteps(len(TIMESTEPS))
    assert scheduler.timesteps.tolist() == TIMESTEPS.tolist()
    x, noise_of = normal(2, 3, 8, 8), generators(2)
    theirs = x
    for timestep in scheduler.timesteps:
        noise = normal_from(noise_of, (3, 8, 8), torch.float64) if eta else None
        out = model_epsilon(theirs, int(timestep))
        theirs = scheduler.step(out, timestep, theirs, eta=eta, variance_noise=noise).prev_sample
    ours = DDIM(num_steps=1, eta=eta)(model, x, GRID, conditioning(2), generators(2))
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("gamma", "variance_type"), [(0.0, "fixed_small"), (1.0, "fixed_large")])
def test_parity_with_diffusers_ddpm(gamma: float, variance_type: str) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    # one training step a sampling step: between sub-sampled steps its "fixed_large" is no longer the upper bound
    betas = torch.linspace(1e-3, 0.2, 100, dtype=torch.float64)
    scheduler = DDPMScheduler(
        num_train_timesteps=100, trained_betas=betas.numpy(), clip_sample=False, variance_type=variance_type
    )
    levels = (1 - betas).cumprod(0).logit()
    x, noise_of = normal(2, 3, 4, 4), generators(2)
    grid = torch.cat([levels.flip(0), GRID[-1:]])
    ours = DDPM(num_steps=1, gamma=gamma)(model, x, grid, conditioning(2), noise_of)
    noise_of = generators(2)
    for timestep in scheduler.timesteps:
        x = scheduler.step(epsilon_at(x, levels[timestep]), timestep, x, generator=noise_of).prev_sample
    assert torch.allclose(ours, x, atol=1e-3)


@diffusers_array_warning
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_parity_with_diffusers_dpm_solver(name: str) -> None:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    kind = "sde-dpmsolver++" if name == "dpmpp_2m_sde" else "dpmsolver++"
    scheduler = DPMSolverMultistepScheduler(**DISCRETE, algorithm_type=kind, solver_order=2)
    scheduler.set_timesteps(len(TIMESTEPS))
    assert scheduler.timesteps.tolist() == TIMESTEPS.tolist()
    theirs, noise_of = normal(2, 3, 8, 8), generators(2)
    ours = MAKE[name](1)(model, theirs, GRID, conditioning(2), generators(2))
    for timestep in scheduler.timesteps:
        noise = normal_from(noise_of, (3, 8, 8), torch.float64)
        out = model_epsilon(theirs, int(timestep))
        theirs = scheduler.step(out, timestep, theirs, variance_noise=noise).prev_sample
    assert torch.allclose(ours, theirs.double(), atol=1e-4)


@diffusers_array_warning
@pytest.mark.parametrize("order", [1, 2, 3])
def test_parity_with_diffusers_unipc(order: int) -> None:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(**DISCRETE, solver_order=order, solver_type="bh2", final_sigmas_type="zero")
    scheduler.set_timesteps(len(TIMESTEPS))
    assert scheduler.timesteps.tolist() == TIMESTEPS.tolist()
    x = normal(2, 3, 8, 8)
    ours = UniPC(num_steps=1, order=order)(model, x, GRID, conditioning(2), [])
    assert torch.allclose(ours, stepped(scheduler, x), atol=1e-4)


@diffusers_array_warning
def test_parity_with_diffusers_heun_between_the_end_steps() -> None:
    from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler

    scheduler = HeunDiscreteScheduler(**DISCRETE)
    scheduler.set_timesteps(len(TIMESTEPS))
    # a level before its first, so that our first step, which is DDIM's, ends where it begins
    grid = torch.cat([GRID[:1] - 1, GRID])
    states: list[Tensor] = []
    MAKE["heun"](1)(model, normal(2, 3, 8, 8), grid, conditioning(2), [], lambda i, x, p: states.append(x))
    theirs = states[0] / ALPHA_BAR[TIMESTEPS[0]].sqrt()  # its state is x / alpha
    for timestep in scheduler.timesteps:
        x_t = scheduler.scale_model_input(theirs, timestep)
        theirs = scheduler.step(model_epsilon(x_t, int(timestep)), timestep, theirs).prev_sample
    assert torch.allclose(states[-1], theirs, atol=1e-4)
