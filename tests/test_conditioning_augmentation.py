"""Conditioning augmentation: the level means its schedule's log-SNR, and the noise is variance preserving."""

import pytest
import torch

from imagen.conditioning_augmentation import GaussianAugmentation, NoAugmentation
from imagen.errors import UserError
from imagen.schedule import CosineSchedule, LinearSchedule, alpha_sigma

COSINE = CosineSchedule(logsnr_min=-20.0, logsnr_max=20.0)
LINEAR = LinearSchedule(logsnr_min=-20.0, logsnr_max=20.0)


def pictures(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    low_res = torch.rand(batch, 3, 8, 8, generator=generator) * 2 - 1
    return low_res, torch.randn(batch, 3, 8, 8, generator=generator)


def test_gaussian_is_the_forward_process_at_the_level_s_time() -> None:
    low_res, noise = pictures(3)
    level = torch.tensor([0.0, 0.3, 1.0])
    noised, logsnr = GaussianAugmentation(COSINE, level_max=1.0)(low_res, level, noise)
    assert torch.equal(logsnr, COSINE.logsnr(level))
    alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
    assert torch.allclose(noised, alpha * low_res + sigma * noise)
    assert torch.allclose(noised[0], low_res[0], atol=3e-4)
    assert torch.allclose(noised[2], noise[2], atol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "level", "sigma"),
    [(COSINE, 0.1, 0.16), (COSINE, 0.3, 0.45), (LINEAR, 0.1, 0.32), (LINEAR, 0.2, 0.59), (LINEAR, 0.3, 0.78)],
)
def test_noise_of_the_paper_s_levels(schedule: CosineSchedule | LinearSchedule, level: float, sigma: float) -> None:
    _, logsnr = GaussianAugmentation(schedule, level_max=1.0)(*level_of(level))
    assert alpha_sigma(logsnr)[1].item() == pytest.approx(sigma, abs=0.01)


def level_of(level: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    low_res, noise = pictures(1)
    return low_res, torch.tensor([level]), noise


def test_training_levels_fill_zero_to_the_highest() -> None:
    u = torch.tensor([0.0, 0.5, 1.0])
    assert GaussianAugmentation(COSINE, level_max=1.0).train_level(u).tolist() == [0, 0.5, 1]
    assert GaussianAugmentation(COSINE, level_max=0.6).train_level(u).tolist() == pytest.approx([0, 0.3, 0.6])


def test_none_leaves_the_picture_and_says_clean_at_every_level() -> None:
    low_res, noise = pictures(2)
    kept, logsnr = NoAugmentation(COSINE)(low_res, torch.tensor([0.0, 0.9]), noise)
    assert torch.equal(kept, low_res)
    assert logsnr.tolist() == pytest.approx([20, 20])
    assert NoAugmentation(COSINE).train_level(torch.rand(4)).tolist() == [0, 0, 0, 0]


def test_unfit_values_are_named() -> None:
    with pytest.raises(UserError, match="level_max=2"):
        GaussianAugmentation(COSINE, level_max=2.0)
