"""The paper's presets, narrow but otherwise as they are: each trains, and together they draw 1024 px pictures."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import imagen
from imagen import build
from imagen.callback import SampleGrid
from imagen.cascade import Cascade
from imagen.cli import compose
from imagen.data.pixels import downsample, to_float
from imagen.runs import RunFolder
from imagen.schedule import alpha_sigma
from imagen.training import train
from imagen.types import Conditioning

NARROW_SR = ["network.channels=[4,8,8,16]", "network.num_heads=2", "network.emb_width=16"]
NARROW = {  # bfloat16, as the presets have it, costs time on most processors: one stage keeps it
    "imagen_base64": ["network.width=8", "network.head_channels=8", "trainer.precision=32-true"],
    "imagen_sr256": [*NARROW_SR, "trainer.precision=32-true"],
    "imagen_sr1024": NARROW_SR,
}
SMALL = [
    *("data=synthetic", "text_encoder=hash", "text_encoder.width=16", "batch_size=1", "max_steps=20"),
    *("lr_scheduler.num_training_steps=20", "lr_scheduler.num_warmup_steps=2"),
    *("logger=[]", "callback=[]", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"),
    *("validate_every_n_steps=20", "trainer.limit_val_batches=1"),
]
NUM_STEPS = (2, 2, 1)
PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[RunFolder]:
    folder = tmp_path_factory.mktemp("outputs")
    return [
        train(compose("train", [f"experiment={name}", f"output_dir={folder}", *SMALL, *narrow]))
        for name, narrow in NARROW.items()
    ]


@pytest.fixture
def cascade(runs) -> Cascade:
    """The three stages as they were trained, sampled in a few steps each."""
    cascade = imagen.load_cascade([run.path for run in runs], device="cpu")
    for stage, num_steps in zip(cascade.stages, NUM_STEPS, strict=True):
        stage.sampler.num_steps = num_steps
    return cascade


def test_each_stage_trains_twenty_steps(runs):
    for run in runs:
        rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        losses = [row["value"] for row in rows if row["name"] == "train/loss"]
        assert len(losses) == 20
        assert torch.tensor(losses).isfinite().all()
        assert losses[0] == pytest.approx(1.0, abs=0.1)  # of an output that is still zero, in epsilon units
        assert json.loads(run.done.read_text())["step"] == 20


def noise_of(picture: Tensor, cond: Conditioning) -> Tensor:
    """The noise in the low-resolution picture that a network is given, if it is ``picture``: else not N(0, 1)."""
    assert cond.low_res is not None
    assert cond.low_res_logsnr is not None
    alpha, sigma = alpha_sigma(cond.low_res_logsnr[:, None, None, None])
    return (cond.low_res - alpha * picture) / sigma


def assert_standard_normal(noise: Tensor) -> None:
    assert noise.numel() > 10_000
    assert noise.mean().abs() < 0.05
    assert noise.std() == pytest.approx(1.0, abs=0.05)


def test_the_cascade_draws_1024_pixels_each_stage_from_the_picture_before(cascade):
    seen: list[tuple[Tensor, Conditioning]] = []
    for stage in cascade.stages:
        stage.denoiser.network.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[2])))
    samples = cascade.sample([PROMPT], seed=7, progress=False)
    assert [tuple(stage.shape) for stage in samples.by_stage] == [(1, 1, 3, size, size) for size in (64, 256, 1024)]
    for i, size in enumerate((64, 256, 1024)):
        conds = [cond for x_t, cond in seen if x_t.shape[2:] == (size, size)]
        assert len(conds) == NUM_STEPS[i]  # both halves of guidance in one batch
        for cond in conds if i else []:
            before = to_float(samples.by_stage[i - 1][0])
            assert_standard_normal(noise_of(before, cond)[:1])


class Enlarger(nn.Module):
    """Says of every x_t that it shows the low-resolution picture, four times as large; of the base stage's, a slope."""

    def __init__(self) -> None:
        super().__init__()
        self.stride = 16
        self.unused = nn.Parameter(torch.zeros(1))  # for the device

    def forward(self, x_t: Tensor, logsnr: Tensor, cond: Conditioning) -> Tensor:
        alpha, sigma = alpha_sigma(logsnr[:, None, None, None])
        x0 = torch.linspace(-0.3, 0.3, x_t.shape[-1]).expand(x_t.shape)
        if cond.low_res is not None:
            assert cond.low_res_logsnr is not None
            low_res_alpha, _ = alpha_sigma(cond.low_res_logsnr[:, None, None, None])
            x0 = F.interpolate(cond.low_res / low_res_alpha, scale_factor=4.0)
        return (x_t - alpha * x0) / sigma


@pytest.fixture
def enlargers(cascade) -> Cascade:
    """The same stages with all their settings, but networks whose output is known."""
    for stage in cascade.stages:
        stage.denoiser.network = Enlarger()
    return cascade


def test_what_the_base_stage_draws_goes_through_to_1024_pixels(enlargers):
    drawn = [to_float(stage[0]) for stage in enlargers.sample([PROMPT], seed=7, progress=False).by_stage]
    slope = torch.linspace(-0.3, 0.3, 64).expand(1, 3, 64, 64)
    torch.testing.assert_close(drawn[0], slope, atol=0.5 / 127.5 + 1e-5, rtol=0)
    for stage, before, after in zip(enlargers.stages[1:], drawn[:-1], drawn[1:], strict=True):
        level = torch.tensor([stage.augmentation_level])
        _, logsnr = stage.augmentation(before, level, torch.zeros_like(before))
        noise = (downsample(after, 4) - before) * (logsnr / 2).exp()  # of the augmentation: alpha / sigma times
        assert_standard_normal(noise)


def test_a_seed_gives_the_same_1024_pixels_and_another_seed_others(enlargers):
    first, again = (enlargers.sample([PROMPT], seed=7, progress=False).final for _ in range(2))
    assert torch.equal(first, again)
    other = enlargers.sample([PROMPT], seed=8, progress=False).final
    assert (first != other).float().mean() > 0.5


def test_a_grid_during_training_on_crops_shows_crops():
    cfg = compose("train", ["experiment=imagen_sr1024", *SMALL, *NARROW["imagen_sr1024"], "sampler.num_steps=1"])
    module, data = build.build_module(cfg), build.build_data(cfg)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch.image.shape == (1, 3, 256, 256)
    seen = []
    network = module.stage.denoiser.network
    network.register_forward_hook(lambda _, args, output: seen.append((args[0].shape[-1], args[2].low_res.shape[-1])))
    grid = SampleGrid(every_n_steps=1, num_prompts=1).draw(module, batch)
    assert isinstance(grid, Image.Image)
    assert set(seen) == {(256, 64)}
