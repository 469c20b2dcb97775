"""Tasks by closed form on Gaussian pictures, and what is made of a user's picture and mask."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data.pixels import downsample, to_float
from imagen.errors import UserError
from imagen.sampler import DDIM, DDPM, DPMSolverPP2M, Heun
from imagen.schedule import alpha_sigma
from imagen.task import Generate, ImageToImage, Inpaint, Travel, Upscale
from imagen.task.picture import mask_at, open_user_picture, picture_at
from tests.oracle import generators
from tests.pictures import half_mask, picture
from tests.test_stage import laws, oracle_stage, told

HEUN = Heun(num_steps=80, s_churn=0.0, s_min=0.05, s_max=50.0, s_noise=1.0)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return to_float(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])


def test_a_whole_factor_of_the_middle_is_block_means():
    image = picture(24, 16)
    assert torch.equal(picture_at(image, 16, 24), as_tensor(image))
    middle = as_tensor(image)[..., 4:20]
    assert (picture_at(image, 4, 4) - downsample(middle, 4)).abs().max() <= 1 / 127
    tall = as_tensor(picture(16, 24))[..., 8:16, :]
    assert (picture_at(picture(16, 24), 4, 8) - downsample(tall, 2)).abs().max() <= 1 / 127


@pytest.mark.parametrize("size", [(5, 7), (32, 32), (16, 40), (100, 3)])
def test_any_size_is_cut_and_resized_without_going_over_the_edge(size):
    image = Image.new("RGB", (24, 17), (255, 0, 51))
    expected = torch.tensor([1.0, -1.0, -0.6]).view(1, 3, 1, 1).expand(1, 3, *size)
    torch.testing.assert_close(picture_at(image, *size), expected)
    assert mask_at(Image.new("L", (24, 17), 255), *size).all()


def test_a_pixel_with_any_white_in_it_is_painted():
    mask = Image.new("L", (16, 16), 0)
    mask.putpixel((5, 9), 255)
    mask.putpixel((0, 0), 100)  # nearer to black
    painted = mask_at(mask, 4, 4)[0, 0].nonzero().tolist()
    assert painted == [[2, 1]]
    assert mask_at(mask, 16, 16).sum() == 1


def test_transparency_is_white_and_the_camera_s_orientation_is_heeded(tmp_path):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 255))
    clear.putpixel((3, 0), (0, 0, 0, 0))
    clear.save(tmp_path / "mask.png")
    for source in (tmp_path / "mask.png", str(tmp_path / "mask.png"), clear):
        assert mask_at(open_user_picture("mask", source), 4, 4).nonzero()[:, 2:].tolist() == [[0, 3]]
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(6, 4).save(tmp_path / "photo.png", exif=exif)
    assert open_user_picture("image", tmp_path / "photo.png").size == (4, 6)


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"image is missing; .* image=\.\.\."):
        Upscale(image=None)
    with pytest.raises(UserError, match=r"image=.*nowhere.png cannot be read: No such file"):
        Upscale(image=tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"image=.*text.png is of no use: picture cannot be decoded"):
        Upscale(image=str(tmp_path / "text.png"))


def inpaint(resample: int = 1, jump: float = 0.1) -> Inpaint:
    return Inpaint(image=picture(16, 16), mask=half_mask(16, 16), resample=resample, jump=jump)


@pytest.mark.parametrize(
    "sampler", [DDIM(num_steps=40, eta=0.0), DPMSolverPP2M(num_steps=40)], ids=["ddim", "dpmpp_2m"]
)
def test_the_known_part_is_the_picture_and_the_painted_one_is_drawn_as_if_alone(sampler):
    """Pixels of the Gaussian are independent; a sampler that learns from the steps before goes at order 1 here."""
    task = inpaint()
    drawn = oracle_stage(sampler).draw(told(2), (16, 16), generators(2), task=task).pictures
    alone = oracle_stage(DDIM(num_steps=40, eta=0.0)).draw(told(2), (16, 16), generators(2)).pictures
    assert torch.equal(drawn[..., :8], picture_at(task.image, 16, 16)[..., :8].expand(2, -1, -1, -1))
    torch.testing.assert_close(drawn[..., 8:], alone[..., 8:], atol=1e-5, rtol=0)


def paint_all(resample: int) -> Inpaint:
    """All of the picture is painted, so that its law is that of the data."""
    return Inpaint(image=picture(16, 16), mask=Image.new("L", (16, 16), 255), resample=resample, jump=0.07)


@pytest.mark.parametrize(
    "sampler", [DDPM(num_steps=40, gamma=0.5), DDIM(num_steps=40, eta=0.5), HEUN], ids=["ddpm", "ddim", "heun"]
)
def test_without_jumps_back_what_is_painted_has_the_law_of_the_sampler_s_own_pictures(sampler):
    stage = oracle_stage(sampler)
    painted, own = laws(stage, task=paint_all(resample=1)), laws(stage)
    assert painted[0] == pytest.approx(own[0], abs=1e-6)


@pytest.mark.parametrize(("resample", "error"), [(1, 0.004), (2, 0.009), (3, 0.013)])
def test_jumping_back_keeps_the_law_of_what_is_painted(resample, error):
    """Exactly, but for the small errors of the sampler's steps: of a second order one, to see no others."""
    law, _ = laws(oracle_stage(HEUN, mean=0.1, std=0.2), task=paint_all(resample))
    assert law == pytest.approx((0.1, 0.2), abs=error * 0.2)


def test_jumping_back_takes_its_steps():
    stage, task, steps = oracle_stage(DDIM(num_steps=80, eta=0.0)), inpaint(resample=2, jump=0.07), []
    stage.draw(told(1), (16, 16), generators(1), task=task, on_step=lambda *step: steps.append(step))
    assert len(steps) == task.num_steps(80) == 160


def test_the_known_part_of_an_unfinished_sample_is_as_noisy_as_the_rest():
    stop, task = 0.0, inpaint(resample=2)
    drawn = oracle_stage(DDIM(num_steps=20, eta=0.0)).draw(
        told(64), (16, 16), generators(64), task=task, early_stop=stop
    )
    alpha, sigma = (x.item() for x in alpha_sigma(torch.tensor(stop)))
    noise = (drawn.unfinished - alpha * picture_at(task.image, 16, 16))[..., :8] / sigma
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_unfit_masks_and_numbers_are_named():
    image = picture(30, 20)
    cases = [
        ({"mask": None}, "mask is missing"),
        ({"mask": half_mask(20, 20)}, r"mask of 20x20 pixels is not of the shape of image, 30x20"),
        ({"mask": Image.new("L", (30, 20))}, "nothing to paint"),
        ({"resample": 0}, "resample=0"),
        ({"jump": 0.0}, "jump=0"),
    ]
    fit = {"image": image, "mask": half_mask(60, 40), "resample": 1, "jump": 0.1}
    Inpaint(**fit)
    Inpaint(**(fit | {"mask": half_mask(7, 5)}))  # as near to 30 : 20 as whole pixels allow
    for unfit, message in cases:
        with pytest.raises(UserError, match=message):
            Inpaint(**(fit | unfit))


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9])
def test_image_to_image_is_the_flow_from_the_noised_picture(strength):
    task = ImageToImage(image=picture(16, 16), strength=strength, sr_strength=1.0)
    stage = oracle_stage(DDIM(num_steps=400, eta=0.0))
    drawn = stage.draw(told(2), (16, 16), generators(2), task=task).pictures
    logsnr = stage.schedule.logsnr(torch.tensor(strength, dtype=torch.float64))
    alpha, sigma = (x.item() for x in alpha_sigma(logsnr))
    noise = torch.stack([torch.randn(3, 16, 16, generator=g) for g in generators(2)])
    start = alpha * picture_at(task.image, 16, 16) + sigma * noise
    expected = stage.denoiser.network.oracle.flow(start, logsnr.item(), math.inf, told(2))
    assert (drawn - expected.clamp(-1, 1)).abs().max() < 0.03


def test_at_strength_1_nothing_of_the_picture_is_left():
    stage = oracle_stage(DDIM(num_steps=20, eta=0.0))
    task = ImageToImage(image=picture(16, 16), strength=1.0, sr_strength=1.0)
    drawn, generated = (stage.draw(told(2), (16, 16), generators(2), task=task).pictures for task in (task, Generate()))
    assert (drawn - generated).abs().max() < 1e-3


@pytest.mark.parametrize("unfit", [{"strength": 0.0}, {"strength": 1.2}, {"sr_strength": -0.5}])
def test_a_strength_that_is_no_time_is_named(unfit):
    name, value = next(iter(unfit.items()))
    with pytest.raises(UserError, match=f"{name}={value} must be above 0"):
        ImageToImage(**({"image": picture(4, 4), "strength": 0.5, "sr_strength": 0.5} | unfit))


@pytest.mark.parametrize("sampler", [DDPM(num_steps=10, gamma=1.0), DDIM(num_steps=10, eta=0.0)], ids=["ddpm", "ddim"])
def test_travel_goes_from_one_seed_s_picture_to_the_other_s_in_even_steps(sampler):
    stage, task = oracle_stage(sampler, std=0.3), Travel(to_seed=8, frames=5)
    assert task.num_samples(1) == 5

    def draw(task, seed: int, samples: range) -> torch.Tensor:
        own = [task.generator(seed, "a dog", sample, 32, "cpu") for sample in samples]
        return stage.draw(told(len(own)), (32, 32), own).pictures

    frames = draw(task, 7, range(5))
    torch.testing.assert_close(frames[:1], draw(Generate(), 7, range(1)))
    torch.testing.assert_close(frames[-1:], draw(Generate(), 8, range(1)), atol=1e-5, rtol=0)
    steps = frames.diff(dim=0).square().mean((1, 2, 3)).sqrt()
    assert steps.max() / steps.min() < 1.2
    assert steps.max() < 0.5 * (frames[0] - frames[-1]).square().mean().sqrt()


def test_travel_needs_two_frames_and_draws_no_more_than_them():
    with pytest.raises(UserError, match="frames=1"):
        Travel(to_seed=1, frames=1)
    with pytest.raises(UserError, match="num_samples=2"):
        Travel(to_seed=1, frames=3).num_samples(2)
