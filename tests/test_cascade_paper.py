"""The paper's presets, narrow but otherwise as they are: each trains, and together they draw 1024 px pictures."""

import json

import pytest
import torch
from PIL import Image

import imagen
from imagen import build
from imagen.callback import SampleGrid
from imagen.cli import compose
from imagen.runs import RunFolder
from imagen.training import train

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


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[RunFolder]:
    folder = tmp_path_factory.mktemp("outputs")
    return [
        train(compose("train", [f"experiment={name}", f"output_dir={folder}", *SMALL, *narrow]))
        for name, narrow in NARROW.items()
    ]


def test_each_stage_trains_twenty_steps(runs):
    for run in runs:
        rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        losses = [row["value"] for row in rows if row["name"] == "train/loss"]
        assert len(losses) == 20
        assert torch.tensor(losses).isfinite().all()
        assert losses[0] == pytest.approx(1.0, abs=0.1)  # of an output that is still zero, in epsilon units
        assert json.loads(run.done.read_text())["step"] == 20


def test_the_cascade_draws_1024_pixels(runs):
    cascade = imagen.load_cascade([run.path for run in runs], device="cpu")
    for stage in cascade.stages:
        stage.sampler.num_steps = 2
    samples = cascade.sample(["a red circle on a blue background"], seed=7, progress=False)
    assert [tuple(stage.shape) for stage in samples.by_stage] == [(1, 1, 3, size, size) for size in (64, 256, 1024)]
    assert samples.final.float().std() > 0


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
