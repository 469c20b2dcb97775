import math

import torch

from imagen.schedule import CosineSchedule
from imagen.spacing import UniformTime

COSINE = CosineSchedule(logsnr_min=-20.0, logsnr_max=20.0)


def test_uniform_time_is_even_in_t_from_noise_to_clean_in_float64() -> None:
    grid = UniformTime().grid(COSINE, 4)
    assert grid.dtype == torch.float64
    assert grid[-1] == math.inf  # a finished picture is x0 itself
    assert torch.allclose(COSINE.t(grid[:-1]), torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64))
