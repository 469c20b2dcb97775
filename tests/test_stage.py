"""One stage by closed form: where its walk begins and stops, and the law of an unfinished sample."""

import math
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from imagen.conditioning_augmentation import (
    BlurAugmentation,
    ConditioningAugmentation,
    GaussianAugmentation,
    NoAugmentation,
    TruncatedAugmentation,
)
from imagen.denoiser import Denoiser
from imagen.errors import UserError
from imagen.guidance import NoGuidance
from imagen.parameterization import X0
from imagen.sampler import DDIM, DDPM, DPMSolverPP2M, Sampler
from imagen.schedule import CosineSchedule, LinearSchedule, NoiseSchedule, alpha_sigma
from imagen.spacing import UniformTime
from imagen.stage import Drawn, Stage
from imagen.task import Generate, ImageToImage, Inpaint
from imagen.threshold import NoThreshold
from imagen.types import Conditioning
from tests.oracle import GaussianOracle, conditioning, generators
from tests.pictures import half_mask, picture
from tests.samplers import Impulses

COSINE = CosineSchedule(logsnr_min=-20.0, logsnr_max=20.0)
LINEAR = LinearSchedule(logsnr_min=-20.0, logsnr_max=20.0)
GENERATE = Generate()


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_pictures_that_are_not_finite_are_refused(wrong):
    pictures = torch.zeros(2, 3, 4, 4)
    assert (Drawn(pictures).as_bytes("base") == 128).all()
    pictures[1, 2, 3, 0] = wrong
    with pytest.raises(UserError, match=r"what stage base draws is not finite: most likely its training diverged"):
        Drawn(pictures).as_bytes("base")


class Known(nn.Module):
    """A network that is right by closed form, and keeps what it was told."""

    stride = 4

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.oracle = GaussianOracle(mean, std)
        self.device = nn.Parameter(torch.zeros(1))
        self.told: list[Conditioning] = []

    def forward(self, x: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        self.told.append(cond)
        return self.oracle(x, logsnr, cond).x0


def oracle_stage(
    sampler: Sampler,
    *,
    mean: float = 0.1,
    std: float = 0.2,
    schedule: NoiseSchedule = COSINE,
    augmentation: ConditioningAugmentation | None = None,
    level: float = 0.0,
    low_resolution: int | None = None,
) -> Stage:
    return Stage(
        name="oracle",
        denoiser=Denoiser(Known(mean, std), X0()),
        schedule=schedule,
        sampler=sampler,
        spacing=UniformTime(),
        guidance=NoGuidance(),
        threshold=NoThreshold(),
        augmentation=augmentation or NoAugmentation(COSINE),
        augmentation_level=level,
        resolution=32,
        low_resolution=low_resolution,
        bf16=False,
    )


def told(batch: int) -> Conditioning:
    return conditioning(batch, dtype=torch.float32)


def law_of(pictures: torch.Tensor) -> tuple[float, float]:
    """The mean and the standard deviation of a sample whose noise was ``Impulses``."""
    pixels = pictures.double().flatten()
    return pixels[-1].item(), (pixels - pixels[-1]).square().sum().sqrt().item()


def laws(stage: Stage, **how: Any) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """The exact law of what a stage draws: of its pictures and, where it stops early, of its unfinished samples.

    As long as nothing is clipped, which would not be linear.
    """
    noise = Impulses()
    with ExitStack() as patches:
        for module in ("stage", "sampler.base"):
            patches.enter_context(patch(f"imagen.{module}.normal_from", noise))
        drawn = stage.draw(told(1), (noise.side, noise.side), generators(1), **how)
    assert drawn.pictures.abs().max() < 1
    return law_of(drawn.pictures), None if drawn.unfinished is None else law_of(drawn.unfinished)


@pytest.mark.parametrize("stop", [-19.99, -3.0, -0.013, 7.0, 20.0])
def test_a_walk_in_two_parts_makes_as_many_steps_and_none_of_them_tiny(stop):
    stage = oracle_stage(DDIM(num_steps=20, eta=0.0))
    first, second = stage.grids(GENERATE, stop)
    assert first[-1] == second[0] == stop
    assert len(first) + len(second) - 2 == 20
    assert first[0] == stage.grid()[0]
    assert second[-1] == math.inf
    gaps = torch.cat([first, second[1:]])[1:].diff()
    assert gaps.min() >= stage.grid()[1:].diff().min() / 2 - 1e-9


@pytest.mark.parametrize("stop", [-math.inf, -25.0, math.inf])
def test_a_walk_that_does_not_pass_the_level_is_whole(stop):
    stage = oracle_stage(DDIM(num_steps=8, eta=0.0))
    (grid,) = stage.grids(GENERATE, stop)
    assert torch.equal(grid, stage.grid())


def test_a_single_step_too_can_be_interrupted():
    first, second = oracle_stage(DDIM(num_steps=1, eta=0.0)).grids(GENERATE, 0.0)
    assert first.tolist() == [pytest.approx(-20), 0]
    assert second.tolist() == [0, math.inf]


@pytest.mark.parametrize("strength", [0.03, 0.5, 0.73, 1.0])
def test_strength_is_the_time_of_the_schedule_at_which_the_walk_begins(strength):
    stage = oracle_stage(DDIM(num_steps=20, eta=0.0))
    task = ImageToImage(image=picture(8, 8), strength=strength, sr_strength=1.0)
    (grid,) = stage.grids(task, math.inf)
    assert COSINE.t(grid[:1]).item() == pytest.approx(strength)
    assert len(grid) - 1 == max(1, round(20 * strength))
    assert len(oracle_stage(DDIM(num_steps=20, eta=0.0), low_resolution=16).grids(task, math.inf)[0]) == 21


@pytest.mark.parametrize(
    ("sampler", "error"),
    [
        (DDPM(num_steps=300, gamma=0.0), 0.028),
        (DDPM(num_steps=300, gamma=0.3), 0.018),
        (DDIM(num_steps=100, eta=0.0), 0.032),
        (DPMSolverPP2M(num_steps=60), 0.007),
    ],
    ids=["ddpm", "ddpm_gamma", "ddim", "dpmpp_2m"],
)
@pytest.mark.parametrize("level", [0.1, 0.4])
def test_an_unfinished_sample_has_the_law_of_a_noised_picture(sampler, error, level):
    """z_s ~ N(alpha m, alpha^2 s^2 + sigma^2), as GaussianAugmentation gives; and its picture runs on to N(m, s^2).

    ``error`` is what the steps of the sampler make of s, whether its walk is interrupted or not.
    """
    mean, std = 0.1, 0.2
    stop, stage = TruncatedAugmentation(LINEAR, level_max=1.0).early_stop(level), oracle_stage(sampler)
    pictures, unfinished = laws(stage, early_stop=stop)
    alpha, sigma = (x.item() for x in alpha_sigma(torch.tensor(stop)))
    assert unfinished == pytest.approx((alpha * mean, math.hypot(alpha * std, sigma)), abs=0.006 * std)
    whole, _ = laws(stage)
    assert pictures == pytest.approx(whole, abs=5e-4 * std)
    assert pictures == pytest.approx((mean, std), abs=error * std)


def test_the_interrupted_walk_is_the_flow_s_own_and_ends_where_the_whole_one_does():
    stage = oracle_stage(DDIM(num_steps=400, eta=0.0))
    stop = 0.5
    drawn = stage.draw(told(2), (16, 16), generators(2), early_stop=stop)
    oracle = stage.denoiser.network.oracle
    noise = torch.stack([torch.randn(3, 16, 16, generator=g) for g in generators(2)])
    expected = oracle.flow(noise, stage.grid()[0].item(), stop, told(2))
    assert (drawn.unfinished - expected).abs().max() < 0.02
    whole = stage.draw(told(2), (16, 16), generators(2))
    assert whole.unfinished is None
    assert (drawn.pictures - whole.pictures).abs().max() < 0.02


@pytest.mark.parametrize("stop", [math.inf, 0.0])
def test_steps_are_numbered_through_however_the_walk_is_cut(stop):
    stage, seen = oracle_stage(DDIM(num_steps=10, eta=0.0)), []
    task = Inpaint(image=picture(8, 8), mask=half_mask(8, 8), resample=3, jump=0.2)
    for walked in (GENERATE, task):
        stage.draw(
            told(1), (8, 8), generators(1), task=walked, early_stop=stop, on_step=lambda i, x, said: seen.append(i)
        )
        assert seen == list(range(walked.num_steps(10)))
        seen.clear()


def test_truncated_conditions_on_the_unfinished_sample_itself_and_else_noises_as_gaussian():
    level, logsnr = 0.3, COSINE.logsnr(torch.tensor(0.3))
    truncated = TruncatedAugmentation(COSINE, level_max=1.0)
    stage = oracle_stage(DDIM(num_steps=2, eta=0.0), augmentation=truncated, level=level, low_resolution=16)
    assert stage.early_stop == pytest.approx(logsnr.item())
    low_res, unfinished = torch.randn(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    text = told(2).text
    cond = stage.condition(text, Drawn(low_res, unfinished), generators(2))
    assert torch.equal(cond.low_res, unfinished)
    assert cond.low_res_logsnr.tolist() == pytest.approx([logsnr.item()] * 2)
    cond = stage.condition(text, Drawn(low_res), generators(2))
    noise = torch.stack([torch.randn(3, 16, 16, generator=g) for g in generators(2)])
    gaussian, _ = GaussianAugmentation(COSINE, level_max=1.0)(low_res, torch.full((2,), level), noise)
    assert torch.equal(cond.low_res, gaussian)


def test_only_truncated_stops_early():
    blur = BlurAugmentation(COSINE, probability=0.5, kernel_size=3, sigma_min=0.4, sigma_max=0.6)
    for augmentation in (GaussianAugmentation(COSINE, level_max=1.0), NoAugmentation(COSINE), blur):
        assert augmentation.early_stop(0.3) == math.inf
    assert TruncatedAugmentation(COSINE, level_max=1.0).early_stop(0.5) == pytest.approx(0, abs=1e-9)


def test_a_stage_draws_at_any_size_and_enlarges_any_picture():
    base = oracle_stage(DDIM(num_steps=2, eta=0.0))
    assert base.draw(told(1), (8, 20), generators(1)).pictures.shape == (1, 3, 8, 20)
    assert base.sample(told(1).text, None, generators(1)).shape == (1, 3, 32, 32)
    sr = oracle_stage(DDIM(num_steps=2, eta=0.0), low_resolution=16)
    assert sr.sample(told(1).text, torch.zeros(1, 3, 4, 10), generators(1)).shape == (1, 3, 8, 20)
