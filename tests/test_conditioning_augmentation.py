"""Conditioning augmentation: a level means its schedule's log-SNR, noise keeps the variance, blurs are Gaussian."""

import math

import pytest
import torch
import torch.nn.functional as F

from imagen import build
from imagen.cli import compose
from imagen.conditioning_augmentation import BlurAugmentation, GaussianAugmentation, NoAugmentation, gaussian_blur
from imagen.errors import UserError
from imagen.randomness import TrainingAddress
from imagen.schedule import CosineSchedule, LinearSchedule, alpha_sigma
from imagen.types import TextEmbedding

COSINE = CosineSchedule(logsnr_min=-20.0, logsnr_max=20.0)
LINEAR = LinearSchedule(logsnr_min=-20.0, logsnr_max=20.0)
BLUR = BlurAugmentation(COSINE, probability=0.5, kernel_size=3, sigma_min=0.4, sigma_max=0.6)


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


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_a_share_of_the_examples_is_blurred_with_sigmas_that_fill_the_range(probability: float) -> None:
    u = (torch.arange(1000) + 0.5) / 1000
    blur = BlurAugmentation(COSINE, probability=probability, kernel_size=3, sigma_min=0.4, sigma_max=0.6)
    level = blur.train_level(u)
    assert (level > 0).float().mean().item() == pytest.approx(probability)
    drawn = level[level > 0].sort().values
    torch.testing.assert_close(drawn, (torch.arange(len(drawn)) + 0.5) / max(len(drawn), 1))
    assert BLUR.train_level(torch.zeros(1)).item() == 1  # no draw is lost at either end
    assert BLUR.train_level(torch.full((1,), 0.5)).item() == 0


def test_blur_has_the_moments_of_its_gaussian_example_by_example() -> None:
    sigma = torch.tensor([1.0, 1.3, 2.0], dtype=torch.float64)
    point = torch.zeros(3, 3, 41, 41, dtype=torch.float64)
    point[:, :, 20, 20] = 1
    spread = gaussian_blur(point, sigma, 31)
    x = torch.arange(-20, 21, dtype=torch.float64)
    torch.testing.assert_close(spread.sum((-1, -2)), torch.ones(3, 3, dtype=torch.float64))
    along = spread.sum(-2)
    torch.testing.assert_close((along * x).sum(-1), torch.zeros(3, 3, dtype=torch.float64))
    # a sampled Gaussian has the continuous one's moments but for terms in exp(-2 (pi sigma)^2), 3e-9 at sigma 1
    variance = (sigma**2)[:, None].expand(3, 3)
    torch.testing.assert_close((along * x**2).sum(-1), variance, rtol=1e-5, atol=0)
    torch.testing.assert_close((along * x**4).sum(-1), 3 * variance**2, rtol=1e-5, atol=0)
    torch.testing.assert_close(spread, spread.transpose(-1, -2))


def test_the_papers_three_taps_have_the_closed_form_weights() -> None:
    point = torch.zeros(1, 3, 5, 5, dtype=torch.float64)
    point[..., 2, 2] = 1
    side = math.exp(-0.5 / 0.4**2)
    taps = torch.tensor([side, 1, side], dtype=torch.float64) / (1 + 2 * side)
    blurred, logsnr = BLUR(point, torch.tensor([1e-12], dtype=torch.float64), point)
    torch.testing.assert_close(blurred[0, 0, 1:4, 1:4], torch.outer(taps, taps))
    assert logsnr.item() == pytest.approx(20)


def test_blur_equals_a_full_convolution_of_the_reflected_picture() -> None:
    low_res, _ = pictures(2)
    sigma = torch.tensor([0.4, 1.1])
    x = torch.arange(-2.0, 3.0)
    for picture, own, blurred in zip(low_res, sigma, gaussian_blur(low_res, sigma, 5), strict=True):
        kernel = torch.exp(-(x[:, None] ** 2 + x**2) / (2 * own**2))
        padded = F.pad(picture[:, None], (2, 2, 2, 2), mode="reflect")
        torch.testing.assert_close(blurred[:, None], F.conv2d(padded, (kernel / kernel.sum())[None, None]))


def test_blur_leaves_constant_pictures_and_level_zero_as_they_are() -> None:
    low_res, noise = pictures(2)
    constant = torch.full_like(low_res, 0.7)
    torch.testing.assert_close(BLUR(constant, torch.ones(2), noise)[0], constant)
    kept, logsnr = BLUR(low_res, torch.tensor([0.0, 1.0]), noise)
    assert torch.equal(kept[0], low_res[0])
    assert (kept[1] - low_res[1]).abs().max() > 0.1
    assert logsnr.tolist() == pytest.approx([20, 20])  # the network is not told


@pytest.mark.parametrize(
    "unfit",
    [
        {"probability": 1.5},
        {"kernel_size": 4},
        {"kernel_size": 1},
        {"sigma_min": 0.0},
        {"sigma_min": 0.7},
    ],
)
def test_unfit_blurs_are_named(unfit: dict) -> None:
    fit = {"probability": 0.5, "kernel_size": 3, "sigma_min": 0.4, "sigma_max": 0.6}
    name, value = next(iter(unfit.items()))
    with pytest.raises(UserError, match=f"{name}={value}"):
        BlurAugmentation(COSINE, **{**fit, **unfit})


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (["schedule@augmentation_schedule=linear"], LinearSchedule),
        (["schedule@augmentation_schedule=cosine"], CosineSchedule),
        (["conditioning_augmentation=blur"], CosineSchedule),
    ],
)
def test_the_command_line_picks_augmentation_and_level_schedule_for_training_and_sampling(
    choice: list[str], expected: type
) -> None:
    cfg = compose("train", ["experiment=toy_sr32", *choice, "data.num_workers=0"])
    module, data = build.build_module(cfg), build.build_data(cfg)
    assert isinstance(module.loss.schedule, CosineSchedule)  # the pictures' own schedule is another matter
    assert isinstance(module.loss.augmentation.schedule, expected)
    assert module.stage.augmentation is module.loss.augmentation
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    address = TrainingAddress(0, 0, 0, len(batch), len(batch), torch.device("cpu"))
    loss = module.loss(module.denoiser, batch, address, training=True)
    loss.per_example.mean().backward()
    assert loss.per_example.isfinite().all()
    low_res = torch.zeros(2, 3, 16, 16)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    text = TextEmbedding(batch.text.tokens[:2], batch.text.mask[:2])
    assert module.stage.sample(text, low_res, generators).shape == (2, 3, 32, 32)
