"""Schedules: pinned values, ends, monotonicity and the inverse; alpha and sigma."""

import math
import statistics

import pytest
import torch

from imagen.errors import UserError
from imagen.schedule import (
    CosineSchedule,
    InterpolatedCosineSchedule,
    LinearSchedule,
    LogNormalSchedule,
    NoiseSchedule,
    ShiftedCosineSchedule,
    SigmoidSchedule,
    alpha_sigma,
    diffuse,
    renoise,
)

BOUNDS = {"logsnr_min": -20.0, "logsnr_max": 20.0}
SCHEDULES = [
    CosineSchedule(**BOUNDS),
    LinearSchedule(**BOUNDS),
    ShiftedCosineSchedule(resolution=256, base_resolution=64, **BOUNDS),
    InterpolatedCosineSchedule(resolution=512, base_resolution_clean=256, base_resolution_noise=32, **BOUNDS),
    LogNormalSchedule(mean=-1.2, std=1.2, **BOUNDS),
    LogNormalSchedule(mean=0.0, std=1.0, **BOUNDS),
    SigmoidSchedule(start=-3.0, end=3.0, tau=1.0, **BOUNDS),
]

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def logsnr_at(schedule: NoiseSchedule, t: float) -> float:
    return schedule.logsnr(torch.tensor(t, dtype=torch.float64)).item()


def test_alpha_sigma_is_variance_preserving_and_accurate_at_both_ends() -> None:
    logsnr = torch.linspace(-20, 20, 81)
    alpha, sigma = alpha_sigma(logsnr)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(81), atol=1e-6)
    exact_alpha, exact_sigma = alpha_sigma(logsnr.double())
    assert torch.allclose(2 * (exact_alpha / exact_sigma).log(), logsnr.double(), atol=1e-12)
    assert torch.allclose(alpha.double(), exact_alpha, rtol=1e-6)
    assert torch.allclose(sigma.double(), exact_sigma, rtol=1e-6)


def test_alpha_sigma_takes_infinite_logsnr() -> None:
    alpha, sigma = alpha_sigma(torch.tensor([-math.inf, math.inf]))
    assert alpha.tolist() == [0, 1]
    assert sigma.tolist() == [1, 0]


def test_diffuse_mixes_each_example_at_its_own_level() -> None:
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    x_t = diffuse(x0, noise, torch.tensor([math.inf, 0.0]))
    assert torch.equal(x_t[0], x0[0])
    assert torch.allclose(x_t[1], (x0[1] + noise[1]) / math.sqrt(2))


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logsnr_is_strictly_decreasing_in_every_shape_and_keeps_dtype(
    schedule: NoiseSchedule, dtype: torch.dtype
) -> None:
    logsnr = schedule.logsnr(torch.linspace(0, 1, 1001, dtype=dtype))
    assert logsnr.dtype == dtype
    assert (logsnr.diff() < 0).all()
    assert schedule.logsnr(torch.rand(2, 3, dtype=dtype)).shape == (2, 3)
    assert schedule.logsnr(torch.tensor(0.5, dtype=dtype)).shape == ()


@every_schedule
def test_ends_are_the_bounds_or_the_curves_own(schedule: NoiseSchedule) -> None:
    start, end = 20.0, -20.0
    if isinstance(schedule, LinearSchedule):
        end = -10.05
    if isinstance(schedule, LogNormalSchedule):  # 8.21 standard deviations
        start = min(start, -2 * (schedule._mean - 8.21 * schedule._std))
        end = -2 * (schedule._mean + 8.21 * schedule._std)
    assert logsnr_at(schedule, 0.0) == pytest.approx(start, abs=1e-9 if start == 20 else 0.01)
    assert logsnr_at(schedule, 1.0) == pytest.approx(end, abs=1e-4 if end == -20 else 0.01)


@every_schedule
def test_truncation_leaves_the_curve_as_it_is(schedule: NoiseSchedule) -> None:
    """Between the bounds the truncated curve is the ideal one, at times that are an affine function of its own."""
    first, last = schedule._start, schedule._end
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    assert torch.equal(schedule.logsnr(t), schedule._ideal(first + t * (last - first)))


@every_schedule
def test_t_is_the_inverse_of_logsnr(schedule: NoiseSchedule) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(schedule.t(schedule.logsnr(t)), t, atol=1e-14)
    logsnr = torch.linspace(-9, 16, 51)
    assert torch.allclose(schedule.logsnr(schedule.t(logsnr)), logsnr, atol=2e-3)  # t itself rounds, near 1 most
    assert schedule.t(torch.tensor([99.0, -99.0])).tolist() == pytest.approx([0, 1], abs=1e-12)


def test_cosine_values() -> None:
    schedule = CosineSchedule(**BOUNDS)
    assert logsnr_at(schedule, 0.5) == pytest.approx(0, abs=1e-12)
    # -2 log tan(pi/8), but for the truncation, which moves it by less than 2e-4
    assert logsnr_at(schedule, 0.25) == pytest.approx(1.762747, abs=2e-4)
    assert logsnr_at(schedule, 0.75) == pytest.approx(-1.762747, abs=2e-4)


def test_linear_values() -> None:
    schedule = LinearSchedule(**BOUNDS)
    assert logsnr_at(schedule, 0.5) == pytest.approx(-2.46, abs=0.005)
    assert logsnr_at(schedule, 1.0) == pytest.approx(-10.05, abs=0.005)
    alpha, _ = alpha_sigma(schedule.logsnr(torch.tensor(0.3, dtype=torch.float64)))
    assert alpha.item() ** 2 == pytest.approx(math.exp(-(0.1 * 0.3 + 9.95 * 0.3**2)), abs=1e-6)


def test_linear_is_the_limit_of_the_thousand_betas() -> None:
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    discrete = (alpha_bar / (1 - alpha_bar)).log()
    continuous = LinearSchedule(**BOUNDS).logsnr(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    assert (discrete - continuous).abs()[50:].max() < 0.08


@pytest.mark.parametrize("resolution", [16, 64, 256, 1024])
def test_shift_is_twice_the_log_of_the_ratio(resolution: int) -> None:
    shifted = ShiftedCosineSchedule(resolution=resolution, base_resolution=64, **BOUNDS)
    assert logsnr_at(shifted, 0.5) == pytest.approx(2 * math.log(64 / resolution), abs=2e-3)
    assert logsnr_at(shifted, 0.0) == pytest.approx(20, abs=1e-9)


def test_interpolated_goes_from_the_clean_base_to_the_noisy_one() -> None:
    def shifted(base: int) -> NoiseSchedule:
        return ShiftedCosineSchedule(resolution=512, base_resolution=base, **BOUNDS)

    interpolated = InterpolatedCosineSchedule(
        resolution=512, base_resolution_clean=256, base_resolution_noise=32, **BOUNDS
    )
    for t in (0.1, 0.5, 0.9):
        expected = (1 - t) * logsnr_at(shifted(256), t) + t * logsnr_at(shifted(32), t)
        assert logsnr_at(interpolated, t) == pytest.approx(expected, abs=5e-3)


def test_log_normal_is_the_quantile_function_of_the_normal_law() -> None:
    schedule = LogNormalSchedule(mean=-1.2, std=1.2, **BOUNDS)
    sigmas = statistics.NormalDist(-1.2, 1.2)
    for t in (0.001, 0.1, 0.5, 0.9, 0.999):
        assert logsnr_at(schedule, t) == pytest.approx(-2 * sigmas.inv_cdf(t), abs=1e-8)


def test_log_normal_draws_have_its_mean_and_deviation() -> None:
    schedule = LogNormalSchedule(mean=-1.2, std=1.2, **BOUNDS)
    log_sigma = schedule.logsnr((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000) / -2
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=1e-4)
    assert log_sigma.std().item() == pytest.approx(1.2, abs=1e-3)


def test_log_normal_is_flow_matchings_logit_normal() -> None:
    schedule = LogNormalSchedule(mean=0.4, std=0.8, **BOUNDS)
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    alpha, sigma = alpha_sigma(schedule.logsnr(t))
    normal = torch.distributions.Normal(torch.tensor(0.4).double(), torch.tensor(0.8).double())
    assert torch.allclose((sigma / (alpha + sigma)).logit(), normal.icdf(t), atol=1e-8)


def test_a_truncated_normal_law_is_the_conditional_one() -> None:
    schedule = LogNormalSchedule(mean=-1.2, std=1.2, logsnr_min=-2.0, logsnr_max=6.0)
    law = statistics.NormalDist(2.4, 2.4)
    inside = law.cdf(6) - law.cdf(-2)
    for logsnr in (-1.0, 1.0, 4.0):
        expected = 1 - (law.cdf(logsnr) - law.cdf(-2)) / inside
        assert schedule.t(torch.tensor(logsnr, dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("start", "end", "tau"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.3), (-3.0, 3.0, 0.1)])
def test_sigmoid_is_the_published_alpha(start: float, end: float, tau: float) -> None:
    schedule = SigmoidSchedule(start=start, end=end, tau=tau, logsnr_min=-60.0, logsnr_max=60.0)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x / tau))

    for t in (0.1, 0.35, 0.5, 0.8):
        published = (sigmoid(end) - sigmoid(start + t * (end - start))) / (sigmoid(end) - sigmoid(start))
        alpha, _ = alpha_sigma(schedule.logsnr(torch.tensor(t, dtype=torch.float64)))
        assert alpha.item() ** 2 == pytest.approx(published, abs=1e-12)


def test_a_wide_sigmoid_is_even_in_logsnr() -> None:
    schedule = SigmoidSchedule(start=-10.0, end=10.0, tau=1.0, **BOUNDS)
    t = torch.linspace(0.2, 0.8, 61, dtype=torch.float64)
    assert torch.allclose(schedule.logsnr(t), 10 - 20 * t, atol=0.02)


def test_schedules_are_built_on_the_meta_device_too() -> None:
    with torch.device("meta"):
        schedule = CosineSchedule(**BOUNDS)
    assert logsnr_at(schedule, 0.5) == pytest.approx(0, abs=1e-12)


def test_unfit_values_are_named() -> None:
    with pytest.raises(UserError, match="logsnr_min=5"):
        CosineSchedule(logsnr_min=5.0, logsnr_max=-5.0)
    with pytest.raises(UserError, match="base_resolution=0"):
        ShiftedCosineSchedule(resolution=64, base_resolution=0, **BOUNDS)
    with pytest.raises(UserError, match="base_resolution_noise=256"):
        InterpolatedCosineSchedule(resolution=64, base_resolution_clean=32, base_resolution_noise=256, **BOUNDS)
    with pytest.raises(UserError, match=r"std=0\.0"):
        LogNormalSchedule(mean=0.0, std=0.0, **BOUNDS)
    with pytest.raises(UserError, match=r"start=3\.0"):
        SigmoidSchedule(start=3.0, end=-3.0, tau=1.0, **BOUNDS)
    with pytest.raises(UserError, match=r"tau=0\.0"):
        SigmoidSchedule(start=-3.0, end=3.0, tau=0.0, **BOUNDS)


def test_noise_upon_noise_is_the_forward_process() -> None:
    """Variance and signal at the noisier level are as if it were reached at once; an infinite start is a picture."""
    generator = torch.Generator().manual_seed(0)
    x0, first, second = torch.randn(3, 2, 3, 64, 64, generator=generator, dtype=torch.float64)
    here, there = torch.tensor([[3.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    x = renoise(diffuse(x0, first, here), second, here, there)
    noise = diffuse(x0, torch.zeros_like(x0), there) - x
    assert noise[0].std().item() == pytest.approx(alpha_sigma(there)[1][0].item(), rel=0.02)
    assert torch.allclose(x[1], diffuse(x0, first, here)[1])  # no way to go, no new noise
    clean = torch.full_like(here, math.inf)
    assert torch.allclose(renoise(x0, second, clean, there), diffuse(x0, second, there))
