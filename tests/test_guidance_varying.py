"""Weights that vary: guided where they say so, no second half where they are 1, and the closed form of an interval."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from oracle import GaussianOracle, conditioning

from imagen.errors import UserError
from imagen.guidance import (
    ClassifierFreeGuidance,
    Guidance,
    IntervalGuidance,
    OscillatingGuidance,
    ScheduledGuidance,
)
from imagen.sampler import DDIM, DPMSolverPP2M, Sampler
from imagen.types import Conditioning, Prediction

X = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
COND = conditioning(3, token=0.4, dtype=torch.float32)
MEAN, NULL_MEAN, STD = 0.1, -0.3, 0.5


def weights_seen(guidance: Guidance, logsnrs: Sequence[float]) -> list[float]:
    """The weights of one sampling that calls the model at these levels, from what it makes of null 0, conditional 1."""

    def denoise(x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
        return Prediction((~cond.text.absent).float()[:, None, None, None].expand_as(x_t))

    guided = guidance(denoise)
    return [guided(X, torch.full((3,), float(logsnr)), COND).x0[0, 0, 0, 0].item() for logsnr in logsnrs]


def test_an_interval_guides_within_its_ends_alone() -> None:
    guidance = IntervalGuidance(weight=3.0, logsnr_min=-1.0, logsnr_max=2.0)
    assert weights_seen(guidance, [-1.5, -1.0, 0.0, 2.0, 2.5]) == [1, 3, 3, 3, 1]


def test_no_second_half_is_computed_where_all_the_batch_is_outside() -> None:
    oracle = GaussianOracle(NULL_MEAN, STD)
    guided = IntervalGuidance(weight=3.0, logsnr_min=-1.0, logsnr_max=2.0)(oracle)
    levels = [[-5.0, -5.0, -5.0], [0.0, 0.0, 0.0], [5.0, 5.0, 5.0], [-5.0, 0.0, 5.0]]
    mixed = [guided(X, torch.tensor(level), COND).x0 for level in levels][-1]
    assert oracle.batches == [3, 6, 3, 6]
    logsnr = torch.tensor(levels[-1])
    plain = oracle(X, logsnr, COND).x0
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])  # to the bit, beside one that is guided
    assert torch.allclose(mixed[1], ClassifierFreeGuidance(weight=3.0)(oracle)(X, logsnr, COND).x0[1])


@pytest.mark.parametrize("sampler", [DDIM(num_steps=300, eta=0.0), DPMSolverPP2M(num_steps=300)], ids=["ddim", "2m"])
def test_an_interval_s_closed_form(sampler: Sampler) -> None:
    """Guidance moves the mean; with y = x / alpha and D^2 = std^2 + (sigma / alpha)^2, d(y / D) = mean d(1 / D)."""
    weight, low, high = 3.0, -2.0, 1.0
    grid = torch.linspace(-12, 12, sampler.num_steps + 1, dtype=torch.float64)
    guidance = IntervalGuidance(weight=weight, logsnr_min=low, logsnr_max=high)
    x = X.double()
    drawn = sampler(guidance(GaussianOracle(NULL_MEAN, STD)), x, grid, conditioning(3, token=MEAN - NULL_MEAN), [])

    def wide(logsnr: float) -> float:
        return math.sqrt(STD**2 + math.exp(-logsnr))

    def alpha(logsnr: float) -> float:
        return math.sqrt(1 / (1 + math.exp(-logsnr)))

    means = [MEAN, NULL_MEAN + weight * (MEAN - NULL_MEAN), MEAN]
    pulled = sum(
        m * (1 / wide(b) - 1 / wide(a)) for m, (a, b) in zip(means, pairwise([-12, low, high, 12]), strict=True)
    )
    exact = alpha(12) * wide(12) * (x / alpha(-12) / wide(-12) + pulled)
    assert torch.allclose(drawn, exact, atol=0.02)
    plain = GaussianOracle(MEAN, STD).flow(x, -12, 12, conditioning(3))
    assert (exact - plain).abs().min() > 0.1  # the interval matters


def test_a_schedule_is_linear_between_its_points_and_constant_beyond() -> None:
    guidance = ScheduledGuidance(logsnr=[-4.0, 0.0, 1.0], weight=[8.0, 2.0, 1.0])
    levels = [-9.0, -4.0, -3.0, 0.0, 0.5, 1.0, 9.0, math.inf]
    assert weights_seen(guidance, levels) == pytest.approx([8, 8, 6.5, 2, 1.5, 1, 1, 1])


def test_a_schedule_that_has_reached_1_saves_the_second_half() -> None:
    oracle = GaussianOracle(NULL_MEAN, STD)
    guided = ScheduledGuidance(logsnr=[-1.3, 0.7, 3.1], weight=[3.3, 0.1, 1.0])(oracle)
    for level in (3.2, 4.0, 0.7):
        guided(X, torch.full((3,), level), COND)
    assert oracle.batches == [3, 3, 6]


def test_one_point_is_a_constant_weight() -> None:
    assert weights_seen(ScheduledGuidance(logsnr=[0.0], weight=[5.0]), [-3.0, 3.0]) == [5, 5]


def test_oscillation_is_constant_first_then_by_turns_the_low_weight_first() -> None:
    guidance = OscillatingGuidance(weight=5.0, low_weight=2.0, num_constant_steps=3)
    assert weights_seen(guidance, [-4, -3, -2, -1, 0, 1, 2]) == [5, 5, 5, 2, 5, 2, 5]
    assert weights_seen(guidance, [-4, -3, -2, -1]) == [5, 5, 5, 2]  # each sampling counts anew
    assert weights_seen(OscillatingGuidance(weight=5.0, low_weight=2.0, num_constant_steps=0), [-1, 0, 1]) == [2, 5, 2]


def test_a_step_of_two_calls_counts_once_with_churn_or_without() -> None:
    guidance = OscillatingGuidance(weight=5.0, low_weight=2.0, num_constant_steps=1)
    assert weights_seen(guidance, [-3, -2, -1, -1, 0, 0, 1]) == [5, 2, 5, 5, 2, 2, 5]  # Heun
    assert weights_seen(guidance, [-3, -2.2, -1, -1.2, 0, -0.2, 1]) == [5, 2, 5, 5, 2, 2, 5]  # noise added in between


def test_a_walk_that_jumps_back_takes_its_levels_with_the_same_weights_again() -> None:
    guidance = OscillatingGuidance(weight=5.0, low_weight=2.0, num_constant_steps=1)
    assert weights_seen(guidance, [-3, -2, -1, -3, -2, -1, 0]) == [5, 2, 5, 5, 2, 5, 2]
    assert weights_seen(guidance, [-3, -2, -1, -2, -1, 0]) == [5, 2, 5, 2, 5, 2]


def test_a_low_weight_of_1_saves_every_other_second_half() -> None:
    oracle = GaussianOracle(NULL_MEAN, STD)
    guidance = OscillatingGuidance(weight=5.0, low_weight=1.0, num_constant_steps=2)
    DDIM(num_steps=6, eta=0.0)(guidance(oracle), X, torch.linspace(-5, 5, 7, dtype=torch.float64), COND, [])
    assert oracle.batches == [6, 6, 3, 6, 3, 6]


def test_unfit_values_are_named() -> None:
    with pytest.raises(UserError, match=r"logsnr_min=2\.0 must be at most logsnr_max=1\.0"):
        IntervalGuidance(weight=2.0, logsnr_min=2.0, logsnr_max=1.0)
    for logsnr, weight in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(UserError, match="equally long"):
            ScheduledGuidance(logsnr=logsnr, weight=weight)
    with pytest.raises(UserError, match="must increase"):
        ScheduledGuidance(logsnr=[1.0, 1.0], weight=[1.0, 2.0])
    with pytest.raises(UserError, match="num_constant_steps=-1"):
        OscillatingGuidance(weight=2.0, low_weight=1.0, num_constant_steps=-1)
