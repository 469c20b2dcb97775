import math

import pytest
import torch

from imagen.errors import UserError
from imagen.schedule import CosineSchedule, LinearSchedule
from imagen.spacing import Karras, Spacing, UniformLogSNR, UniformTime

COSINE = CosineSchedule(logsnr_min=-20.0, logsnr_max=20.0)
LINEAR = LinearSchedule(logsnr_min=-20.0, logsnr_max=20.0)
SPACINGS: list[Spacing] = [
    UniformTime(),
    UniformLogSNR(logsnr_min=-20.0, logsnr_max=20.0),
    Karras(rho=7.0, logsnr_min=-20.0, logsnr_max=20.0),
]


@pytest.mark.parametrize("spacing", SPACINGS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("schedule", [COSINE, LINEAR], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("num_steps", [1, 2, 9])
def test_a_grid_goes_from_the_schedule_s_noise_to_clean(
    spacing: Spacing, schedule: CosineSchedule | LinearSchedule, num_steps: int
) -> None:
    grid = spacing.grid(schedule, num_steps)
    assert grid.shape == (num_steps + 1,)
    assert grid.dtype == torch.float64
    assert (grid.diff() > 0).all()
    assert grid[0].item() == pytest.approx(schedule.logsnr(torch.ones(1, dtype=torch.float64)).item(), abs=1e-9)
    assert grid[-1] == math.inf  # a finished picture is x0 itself


def test_uniform_time_is_even_in_t() -> None:
    grid = UniformTime().grid(COSINE, 4)
    assert torch.allclose(COSINE.t(grid[:-1]), torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64))


def test_uniform_logsnr_is_even_over_the_schedule_s_range() -> None:
    grid = UniformLogSNR(logsnr_min=-20.0, logsnr_max=20.0).grid(COSINE, 5)
    assert torch.allclose(grid[:-1], torch.tensor([-20.0, -10.0, 0.0, 10.0, 20.0], dtype=torch.float64))


def test_karras_is_edm_s_equation_5() -> None:
    schedule = CosineSchedule(logsnr_min=-2 * math.log(80), logsnr_max=-2 * math.log(0.002))
    grid = Karras(rho=7.0, logsnr_min=-20.0, logsnr_max=20.0).grid(schedule, 18)
    sigmas = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert torch.allclose((-grid / 2).exp(), torch.tensor([*sigmas, 0.0], dtype=torch.float64), rtol=1e-9, atol=0)


def test_karras_is_uniform_in_log_snr_in_the_limit() -> None:
    assert torch.allclose(
        Karras(rho=1e5, logsnr_min=-20.0, logsnr_max=20.0).grid(COSINE, 9),
        UniformLogSNR(logsnr_min=-20.0, logsnr_max=20.0).grid(COSINE, 9),
        atol=0.01,
    )


@pytest.mark.parametrize("rho", [0.0, -1.0, math.inf])
def test_an_unfit_rho_is_named(rho: float) -> None:
    with pytest.raises(UserError, match=f"rho={rho}"):
        Karras(rho=rho, logsnr_min=-20.0, logsnr_max=20.0)


def test_a_range_narrows_the_schedule_s_and_never_leaves_it() -> None:
    grid = UniformLogSNR(logsnr_min=-8.0, logsnr_max=90.0).grid(COSINE, 3)
    assert torch.allclose(grid[:-1], torch.tensor([-8.0, 6.0, 20.0], dtype=torch.float64))
    with pytest.raises(UserError, match=r"spacing\.logsnr_min=30\.0"):
        UniformLogSNR(logsnr_min=30.0, logsnr_max=40.0).grid(COSINE, 3)
    with pytest.raises(UserError, match="must be below"):
        Karras(rho=7.0, logsnr_min=2.0, logsnr_max=2.0)
