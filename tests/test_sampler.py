"""Samplers: orders and laws against the closed form, parity with diffusers, stability of few steps, independence."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from oracle import GaussianOracle, conditioning, generators
from torch import Tensor

from imagen.errors import UserError
from imagen.guidance import ClassifierFreeGuidance
from imagen.randomness import normal_from
from imagen.sampler import DDIM, DDPM, DPMSolverPP2M, Heun, Sampler
from imagen.schedule import CosineSchedule, LinearSchedule, NoiseSchedule, ShiftedCosineSchedule, alpha_sigma
from imagen.spacing import UniformTime
from imagen.types import Conditioning, Prediction

BOUNDS = {"logsnr_min": -20.0, "logsnr_max": 20.0}
COSINE = CosineSchedule(**BOUNDS)
SCHEDULES = [COSINE, LinearSchedule(**BOUNDS), ShiftedCosineSchedule(resolution=256, base_resolution=64, **BOUNDS)]

MAKE: dict[str, Callable[[int], Sampler]] = {
    "ddpm": lambda n: DDPM(num_steps=n, gamma=0.3),
    "ddim": lambda n: DDIM(num_steps=n, eta=0.0),
    "ddim_eta": lambda n: DDIM(num_steps=n, eta=0.5),
    "dpmpp_2m": lambda n: DPMSolverPP2M(num_steps=n),
    "heun": lambda n: Heun(num_steps=n, s_churn=0.0, s_min=0.05, s_max=50.0, s_noise=1.003),
}
every_sampler = pytest.mark.parametrize("name", MAKE)
every_solver = pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun"])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ode_error(sampler: Sampler, grid: Tensor, std: float) -> float:
    """Largest error against the exact flow, in units of the data's standard deviation."""
    oracle, cond, x = GaussianOracle(0.3, std), conditioning(2), normal(2, 3, 4, 4)
    exact = oracle.flow(x, grid[0].item(), grid[-1].item(), cond)
    return ((sampler(oracle, x, grid, cond, []) - exact).abs().max() / std).item()


# ---- order of convergence ----


@pytest.mark.parametrize(("name", "order"), [("ddim", 1.0), ("dpmpp_2m", 2.0), ("heun", 2.0)])
@pytest.mark.parametrize("std", [0.5, 1.5])
def test_order_of_convergence(name: str, order: float, std: float) -> None:
    # an even grid of log-SNR from noise to clean: finite at both ends, so that halving it halves every step
    errors = [
        ode_error(MAKE[name](n), torch.linspace(-8, 8, n + 1, dtype=torch.float64), std) for n in (80, 160, 320, 640)
    ]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders[-1] == pytest.approx(order, abs=0.1), (errors, orders)


@pytest.mark.parametrize(
    ("name", "bounds"), [("ddim", (0.25, 0.02)), ("dpmpp_2m", (0.02, 0.003)), ("heun", (0.02, 3e-4))]
)
def test_error_on_the_paper_grid(name: str, bounds: tuple[float, float]) -> None:
    for steps, bound in zip((20, 320), bounds, strict=True):
        sampler = MAKE[name](steps)
        assert ode_error(sampler, UniformTime().grid(COSINE, sampler.num_steps), 0.5) < bound


# ---- law of the stochastic samplers ----


def law(sampler: Sampler, grid: Tensor, std: float) -> tuple[float, float]:
    """Mean and standard deviation of what a sampler draws for data N(0.3, std^2), over 2 * 49,152 pixels."""
    oracle, cond = GaussianOracle(0.3, std), conditioning(2)
    start_alpha, _ = alpha_sigma(grid[0])
    x = start_alpha * 0.3 + oracle.deviation(grid[0].item()) * normal(2, 3, 128, 128, seed=9)
    sample = sampler(oracle, x, grid, cond, generators(2))
    return sample.mean().item(), sample.std().item()


@pytest.mark.parametrize(
    ("std", "gamma", "num_steps", "tolerance"),
    [
        (1.0, 1.0, 64, 0.01),  # the upper bound is exact for unit variance, but for the last step
        (0.5, 0.0, 400, 0.015),  # any gamma in the limit of many steps
        (0.5, 0.3, 400, 0.01),
        (0.5, 1.0, 400, 0.01),
    ],
)
def test_ddpm_has_the_right_mean_and_variance(std: float, gamma: float, num_steps: int, tolerance: float) -> None:
    sampler = DDPM(num_steps=num_steps, gamma=gamma)
    mean, deviation = law(sampler, UniformTime().grid(COSINE, sampler.num_steps), std)
    assert mean == pytest.approx(0.3, abs=4 * std / math.sqrt(2 * 3 * 128**2))
    assert deviation == pytest.approx(std, rel=tolerance)


def test_ddpm_lower_bound_is_exact_for_a_single_picture_in_few_steps() -> None:
    # stopping half way, at log-SNR 0, x must be alpha m plus exactly sigma noise
    grid = torch.linspace(-10, 0, 6, dtype=torch.float64)
    mean, deviation = law(DDPM(num_steps=1, gamma=0.0), grid, 1e-9)
    assert mean == pytest.approx(0.3 * math.sqrt(0.5), abs=0.01)
    assert deviation == pytest.approx(math.sqrt(0.5), rel=0.01)


def test_ddpm_puts_no_noise_on_the_final_picture() -> None:
    sampler, oracle = DDPM(num_steps=10, gamma=1.0), GaussianOracle(0.3, 0.5)
    said: list[Tensor] = []
    sample = sampler(
        oracle,
        normal(2, 3, 4, 4),
        UniformTime().grid(COSINE, sampler.num_steps),
        conditioning(2),
        generators(2),
        lambda i, x, p: said.append(p.x0),
    )
    assert torch.allclose(sample, said[-1], atol=5e-4)


def test_ddim_with_eta_1_is_ddpm_with_gamma_0() -> None:
    ddpm, ddim = DDPM(num_steps=12, gamma=0.0), DDIM(num_steps=12, eta=1.0)
    x, grid, cond, oracle = (
        normal(2, 3, 8, 8),
        UniformTime().grid(COSINE, ddpm.num_steps),
        conditioning(2),
        GaussianOracle(0.3, 0.5),
    )
    one = ddpm(oracle, x, grid, cond, generators(2))
    assert torch.allclose(one, ddim(oracle, x, grid, cond, generators(2)), atol=1e-12)


def test_ddpm_mean_is_the_paper_s_formula() -> None:
    oracle, cond, x = GaussianOracle(0.3, 0.5), conditioning(1), normal(1, 3, 4, 4)
    t, s = torch.tensor([-1.0, 0.7], dtype=torch.float64)
    (alpha_t, alpha_s), (_, sigma_s) = alpha_sigma(torch.stack([t, s]))
    x0 = oracle(x, t[None], cond).x0
    kept = (t - s).exp()
    expected = kept * alpha_s / alpha_t * x + (1 - kept) * alpha_s * x0
    expected = expected + (1 - kept).sqrt() * sigma_s * normal_from(generators(1), (3, 4, 4), torch.float64)
    sample = DDPM(num_steps=1, gamma=0.0)(oracle, x, torch.stack([t, s]), cond, generators(1))
    assert torch.allclose(sample, expected, atol=1e-12)


# ---- parity with diffusers on its discrete grid ----

ALPHA_BAR = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
DISCRETE = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
TIMESTEPS = torch.arange(999, 0, -50)
GRID = torch.cat([ALPHA_BAR[TIMESTEPS].logit(), torch.tensor([math.inf], dtype=torch.float64)])

diffusers_array_warning = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def model(x_t: Tensor, logsnr: Tensor, cond: Conditioning) -> Prediction:
    """A denoiser without meaning, nonlinear in x and in log-SNR, whose pixels depend on their neighbours."""
    level = logsnr[:, None, None, None]
    return Prediction(0.8 * torch.tanh(x_t + 0.5 * x_t.roll(1, -1) + 0.1 * level) + 0.1 * torch.sin(level))


def model_epsilon(x_t: Tensor, timestep: int) -> Tensor:
    """The same as an epsilon model of discrete time."""
    logsnr = ALPHA_BAR[timestep].logit()
    alpha, sigma = alpha_sigma(logsnr)
    return (x_t - alpha * model(x_t, logsnr.expand(len(x_t)), conditioning(len(x_t))).x0) / sigma


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
    scheduler = DDPMScheduler(**DISCRETE, clip_sample=False, variance_type=variance_type)
    scheduler.set_timesteps(1000)
    grid = torch.cat([ALPHA_BAR.flip(0).logit(), GRID[-1:]])
    x = normal(2, 3, 4, 4)
    theirs = stepped(scheduler, x, generator=generators(2))
    ours = DDPM(num_steps=1, gamma=gamma)(model, x, grid, conditioning(2), generators(2))
    assert torch.allclose(ours, theirs, atol=1e-3)


@diffusers_array_warning
def test_parity_with_diffusers_dpm_solver() -> None:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**DISCRETE, algorithm_type="dpmsolver++", solver_order=2)
    scheduler.set_timesteps(len(TIMESTEPS))
    assert scheduler.timesteps.tolist() == TIMESTEPS.tolist()
    x = normal(2, 3, 8, 8)
    ours = DPMSolverPP2M(num_steps=1)(model, x, GRID, conditioning(2), [])
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


# ---- few steps, huge first and last steps, float32 ----


@every_sampler
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 20])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_few_steps_stay_stable_with_an_imperfect_model(name: str, num_steps: int, schedule: NoiseSchedule) -> None:
    """A network's x0 is wrong by a little at every level, the cleanest too: no sampler may magnify that."""

    def imperfect(x_t: Tensor, logsnr: Tensor, cond: Conditioning) -> Prediction:
        x0 = GaussianOracle(0.0, 0.5)(x_t, logsnr, cond).x0
        return Prediction((x0 + 0.05 * torch.sin(3 * logsnr)[:, None, None, None]).clamp(-1, 1))

    sampler = MAKE[name](num_steps)
    grid, cond = UniformTime().grid(schedule, sampler.num_steps), conditioning(2, dtype=torch.float32)
    x = normal(2, 3, 16, 16, dtype=torch.float32)
    sample = sampler(imperfect, x, grid, cond, generators(2))
    assert sample.dtype == torch.float32
    assert sample.abs().max() < 1.25


@every_solver
def test_float32_is_enough(name: str) -> None:
    sampler, oracle, x = MAKE[name](20), GaussianOracle(0.3, 0.5), normal(2, 3, 8, 8)
    grid = UniformTime().grid(COSINE, sampler.num_steps)
    exact = sampler(oracle, x, grid, conditioning(2), [])
    sample = sampler(oracle, x.float(), grid, conditioning(2, dtype=torch.float32), [])
    assert torch.allclose(sample.double(), exact, atol=1e-5)


# ---- grids, calls, hooks ----


@every_solver
def test_a_grid_may_start_below_noise_and_stop_above_clean(name: str) -> None:
    assert ode_error(MAKE[name](1), torch.linspace(-1, 2, 200, dtype=torch.float64), 0.5) < 0.005


@every_sampler
def test_two_halves_of_a_grid_carry_on(name: str) -> None:
    """Stopping at a level and going on from it draws from the same law: image-to-image needs no other sampler."""
    sampler, oracle, cond = MAKE[name](1), GaussianOracle(0.3, 0.5), conditioning(2)
    grid, noise_of = torch.linspace(-10, 10, 201, dtype=torch.float64), generators(2)
    x = sampler(oracle, normal(2, 3, 64, 64), grid[:101], cond, noise_of)
    x = sampler(oracle, x, grid[100:], cond, noise_of)
    assert x.mean().item() == pytest.approx(0.3, abs=0.02)
    assert x.std().item() == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize(("name", "calls"), [("ddpm", 10), ("ddim", 10), ("dpmpp_2m", 10), ("heun", 18)])
def test_network_calls(name: str, calls: int) -> None:
    sampler, oracle = MAKE[name](10), GaussianOracle(0.3, 0.5)
    sampler(oracle, normal(1, 3, 2, 2), UniformTime().grid(COSINE, sampler.num_steps), conditioning(1), generators(1))
    assert len(oracle.batches) == calls


@every_sampler
def test_on_step_sees_every_step(name: str) -> None:
    sampler, oracle = MAKE[name](5), GaussianOracle(0.3, 0.5)
    seen: list[tuple[int, Tensor, Prediction]] = []
    x = sampler(
        oracle,
        normal(1, 3, 2, 2),
        UniformTime().grid(COSINE, sampler.num_steps),
        conditioning(1),
        generators(1),
        lambda *step: seen.append(step),
    )
    assert [i for i, _, _ in seen] == [0, 1, 2, 3, 4]
    assert torch.equal(seen[-1][1], x)
    assert torch.allclose(seen[-1][2].x0, x, atol=1e-3)


@every_sampler
def test_a_sample_does_not_depend_on_its_neighbours(name: str) -> None:
    sampler, oracle = MAKE[name](6), GaussianOracle(0.3, 0.5)
    grid, x = UniformTime().grid(COSINE, sampler.num_steps), normal(3, 3, 4, 4)
    together = sampler(oracle, x, grid, conditioning(3), generators(3))
    for i in range(3):
        alone = sampler(oracle, x[i : i + 1], grid, conditioning(1), generators(1, seed=i))
        assert torch.equal(alone[0], together[i])


def test_too_few_generators_are_refused_not_shared() -> None:
    sampler = DDPM(num_steps=3, gamma=0.0)
    with pytest.raises(AssertionError, match="one generator per example"):
        sampler(
            GaussianOracle(0, 1),
            normal(2, 3, 2, 2),
            UniformTime().grid(COSINE, sampler.num_steps),
            conditioning(2),
            generators(1),
        )


@every_solver
def test_guided_sampling_reaches_the_guided_mean(name: str) -> None:
    """Both halves Gaussian of the same width: guidance moves the mean to null + w (conditional - null), no more."""
    sampler, oracle = MAKE[name](100), GaussianOracle(-0.2, 0.5)
    x, grid = normal(2, 3, 4, 4), UniformTime().grid(COSINE, sampler.num_steps)
    guided = sampler(ClassifierFreeGuidance(weight=3.0)(oracle), x, grid, conditioning(2, token=0.1), [])
    assert torch.allclose(guided, GaussianOracle(0.1, 0.5).flow(x, -20, 20, conditioning(2)), atol=0.04)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddim_eta"])
def test_renoise_x0_replaces_x0_in_the_noise_alone(name: str) -> None:
    def with_renoise(x_t: Tensor, logsnr: Tensor, cond: Conditioning) -> Prediction:
        return Prediction(torch.full_like(x_t, 0.5), renoise_x0=torch.full_like(x_t, -0.5))

    x, grid = normal(1, 3, 4, 4), torch.tensor([-1.0, 1.0], dtype=torch.float64)
    (alpha_t, _), (sigma_t, sigma_s) = alpha_sigma(grid)
    cond = conditioning(1)
    plain = MAKE[name](1)(lambda *a: Prediction(torch.full_like(x, 0.5)), x, grid, cond, generators(1))
    moved = MAKE[name](1)(with_renoise, x, grid, cond, generators(1))
    eta = {"ddpm": 1.0, "ddim": 0.0, "ddim_eta": 0.5}[name]
    direction = sigma_s * (1 - eta**2 * (1 - (grid[0] - grid[1]).exp())).sqrt()
    assert torch.allclose(moved - plain, (direction * alpha_t / sigma_t).expand_as(x), atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(num_steps=0, eta=0.0), "num_steps=0"),
        (lambda: DDIM(num_steps=5, eta=1.5), "eta=1"),
        (lambda: DDPM(num_steps=5, gamma=-0.1), "gamma=-0"),
    ],
)
def test_unfit_values_are_named(make: Callable[[], Sampler], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
