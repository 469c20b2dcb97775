"""What holds for every sampler: its error with every parameterization and spacing, stability, grids, independence."""

from itertools import pairwise

import pytest
import torch
from omegaconf import OmegaConf
from oracle import GaussianOracle, conditioning, generators
from samplers import COSINE, MAKE, even, every_sampler, every_solver, law_error, normal, ode_error
from torch import Tensor, nn

from imagen.build import instantiate
from imagen.cli import CONF
from imagen.denoiser import Denoiser
from imagen.errors import UserError
from imagen.guidance import ClassifierFreeGuidance
from imagen.parameterization import Parameterization
from imagen.sampler import DDIM, DDPM
from imagen.schedule import CosineSchedule, LinearSchedule, ShiftedCosineSchedule, alpha_sigma
from imagen.spacing import Karras, Spacing, UniformLogSNR, UniformTime
from imagen.types import Conditioning, Denoise, Prediction

BOUNDS = {"logsnr_min": -20.0, "logsnr_max": 20.0}
SCHEDULES = [COSINE, LinearSchedule(**BOUNDS), ShiftedCosineSchedule(resolution=256, base_resolution=64, **BOUNDS)]
SPACINGS = [
    UniformTime(),
    UniformLogSNR(logsnr_min=-20.0, logsnr_max=20.0),
    Karras(rho=7.0, logsnr_min=-20.0, logsnr_max=20.0),
]
every_spacing = pytest.mark.parametrize("spacing", SPACINGS, ids=lambda s: type(s).__name__)

# ---- every sampler x parameterization x spacing, as conf/ has them ----

OPTIONS = {
    choice: {path.stem: OmegaConf.load(path) for path in sorted((CONF / choice).glob("*.yaml"))}
    for choice in ("sampler", "parameterization", "spacing")
}


class ExactNetwork(nn.Module):
    """Puts out exactly what a parameterization asks for, of Gaussian data; of a variance, that it lies half way."""

    def __init__(self, parameterization: Parameterization, oracle: Denoise) -> None:
        super().__init__()
        self.parameterization, self.oracle = parameterization, oracle

    def forward(self, scaled: Tensor, logsnr: Tensor, cond: Conditioning) -> Tensor:
        x_t = scaled / self.parameterization.input_scale(logsnr)[:, None, None, None]
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        x0 = self.oracle(x_t, logsnr, cond).x0
        target = self.parameterization.target(x0, (x_t - alpha * x0) / sigma, logsnr)
        more = torch.zeros_like(target).repeat(1, self.parameterization.out_channels // 3 - 1, 1, 1)
        return torch.cat([target, more], dim=1)


RANGE = CosineSchedule(logsnr_min=-6.0, logsnr_max=6.0)

ERROR_OF_12_STEPS = {
    "ddim": 0.15,
    "ddpm": 0.28,
    "ddpm_learned": 0.1,
    "dpmpp_2m": 0.06,
    "dpmpp_2m_sde": 0.12,
    "flow_euler": 0.15,
    "flow_heun": 0.06,
    "heun": 0.06,
    "heun_churn": 0.12,
    "unipc": 0.06,
}
"""Of a sample's mean and standard deviation, in units of the data's standard deviation."""


@pytest.mark.parametrize("spacing", OPTIONS["spacing"])
@pytest.mark.parametrize("parameterization", OPTIONS["parameterization"])
@pytest.mark.parametrize("sampler", OPTIONS["sampler"])
def test_error_of_every_sampler_parameterization_and_spacing(sampler: str, parameterization: str, spacing: str) -> None:
    reading = instantiate(OPTIONS["parameterization"][parameterization])
    walker = instantiate(OmegaConf.merge(OPTIONS["sampler"][sampler], {"num_steps": 12}))
    if sampler == "ddpm_learned" and reading.out_channels == 3:
        with pytest.raises(UserError, match=rf"ddpm_learned .*parameterization={parameterization},.*sampler=ddpm"):
            walker.check(reading, f"parameterization={parameterization}")
        return
    walker.check(reading, f"parameterization={parameterization}")
    grid = instantiate(OPTIONS["spacing"][spacing]).grid(RANGE, 12)

    def walk(oracle: Denoise, x: Tensor) -> Tensor:
        denoiser = Denoiser(ExactNetwork(reading, oracle), reading)
        return walker(denoiser, x, grid, conditioning(1, dtype=torch.float32), generators(1))

    error = law_error(walk, grid[0].item(), grid[-1].item(), 0.5, torch.float32)
    assert error < ERROR_OF_12_STEPS[sampler]


# ---- few steps, huge first and last steps, float32 ----


@every_sampler
@every_spacing
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_any_number_of_steps_is_stable_with_an_imperfect_model(name: str, spacing: Spacing, num_steps: int) -> None:
    """A network's x0 is wrong by a little at every level, the cleanest too: no sampler may magnify that, on its way."""
    wrong = torch.tensor([0.0, 0.05])[:, None, None, None]  # the same picture with the right model and a wrong one

    def denoise(x_t: Tensor, logsnr: Tensor, cond: Conditioning) -> Prediction:
        x0 = GaussianOracle(0.0, 0.5)(x_t, logsnr, cond).x0
        return Prediction((x0 + wrong * torch.sin(3 * logsnr)[:, None, None, None]).clamp(-1, 1))

    def compare(i: int, x: Tensor, prediction: Prediction) -> None:
        assert x.dtype == torch.float32
        assert (x[1] - x[0]).abs().max() < bound

    bound = 0.7 if name == "unipc_3" else 0.3  # what is extrapolated from three x0s has their three errors
    for schedule in SCHEDULES if num_steps == 3 else SCHEDULES[:1]:
        x, cond = normal(1, 3, 16, 16, dtype=torch.float32).repeat(2, 1, 1, 1), conditioning(2, dtype=torch.float32)
        noise_of = [*generators(1), *generators(1)]
        MAKE[name](num_steps)(denoise, x, spacing.grid(schedule, num_steps), cond, noise_of, compare)


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
    num_steps = 199 if name in ("ddim", "flow_euler") else 99  # the methods of order 1
    assert ode_error(MAKE[name](num_steps), even(-1, 2, num_steps), 0.5) < 0.005


@every_sampler
def test_two_halves_of_a_grid_carry_on(name: str) -> None:
    """Stopping at a level and going on from it draws from the same law: image-to-image needs no other sampler."""
    sampler, cond, grid = MAKE[name](60), conditioning(1), even(-8, 8, 60)

    def walk(oracle: Denoise, x: Tensor) -> Tensor:
        x = sampler(oracle, x, grid[:31], cond, generators(1))
        return sampler(oracle, x, grid[30:], cond, generators(1))

    assert law_error(walk, -8, 8, 0.5) < 0.06


@every_sampler
def test_network_calls(name: str) -> None:
    # Heun's first step, from pure noise, and the last, to clean, are plain
    calls = {"heun": 18, "heun_churn": 18, "flow_heun": 19}.get(name, 10)
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


@pytest.mark.parametrize(("name", "num_steps"), [("ddim", 100), ("dpmpp_2m", 30), ("unipc_2", 30), ("heun", 30)])
def test_guided_sampling_reaches_the_guided_mean(name: str, num_steps: int) -> None:
    """Both halves Gaussian of the same width: guidance moves the mean to null + w (conditional - null), no more."""
    oracle, x, grid = GaussianOracle(-0.2, 0.5), normal(2, 3, 4, 4), UniformTime().grid(COSINE, num_steps)
    guided_oracle = ClassifierFreeGuidance(weight=3.0)(oracle)
    guided = MAKE[name](num_steps)(guided_oracle, x, grid, conditioning(2, token=0.1), [])
    assert torch.allclose(guided, GaussianOracle(0.1, 0.5).flow(x, -20, 20, conditioning(2)), atol=0.04)


READS_RENOISE_X0 = ["ddpm", "ddim", "ddim_eta", "flow_euler"]


@pytest.mark.parametrize("name", READS_RENOISE_X0)
def test_renoise_x0_replaces_x0_in_the_noise_alone(name: str) -> None:
    """DDIM's move, with the other x0 in its noise."""
    x, grid, cond = normal(1, 3, 4, 4), even(-5, 5, 1), conditioning(1)

    def sample(renoise_x0: float | None) -> Tensor:
        other = None if renoise_x0 is None else torch.full_like(x, renoise_x0)
        prediction = Prediction(torch.full_like(x, 0.5), renoise_x0=other)
        return MAKE[name](1)(lambda *a: prediction, x, grid, cond, generators(1))

    (alpha_t, _), (sigma_t, sigma_s) = alpha_sigma(grid)
    eta = {"ddpm": 1.0, "ddim_eta": 0.5}.get(name, 0.0)
    direction = sigma_s * (1 - eta**2 * (1 - (grid[0] - grid[1]).exp())).sqrt()
    expected = (direction * alpha_t / sigma_t).expand_as(x)
    assert torch.allclose(sample(-0.5) - sample(None), expected, atol=1e-12)


@pytest.mark.parametrize("name", sorted(MAKE.keys() - set(READS_RENOISE_X0)))
def test_a_renoise_x0_is_never_passed_over(name: str) -> None:
    x = normal(1, 3, 4, 4)
    with pytest.raises(AssertionError, match="guidance and sampler were not checked"):
        MAKE[name](1)(lambda *a: Prediction(x, renoise_x0=x), x, even(-5, 5, 1), conditioning(1), generators(1))


def test_numbers_of_steps_below_one_are_refused() -> None:
    with pytest.raises(UserError, match="num_steps=0"):
        DDIM(num_steps=0, eta=0.0)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddim_eta", "flow_euler"])
def test_a_grid_walked_step_by_step_is_the_grid_walked_at_once(name: str) -> None:
    """Inpainting and an early stop cut grids in pieces; where a piece ends is not where the walk does."""
    sampler, oracle, cond = MAKE[name](6), GaussianOracle(0.3, 0.5), conditioning(2)
    grid, x = UniformTime().grid(COSINE, 6), normal(2, 3, 4, 4)
    at_once, noise_of = sampler(oracle, x, grid, cond, generators(2)), generators(2)
    for piece in pairwise(grid):
        x = sampler(oracle, x, torch.stack(piece), cond, noise_of)
    assert torch.allclose(x, at_once, atol=1e-12)
