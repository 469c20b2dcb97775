"""The toy experiments learn what they are for, in seconds: a base that follows its data, a stage that enlarges."""

import json

import pytest
import torch

from imagen import build
from imagen.cli import compose
from imagen.data.pixels import downsample, to_float
from imagen.randomness import generator_of
from imagen.runs import RunFolder, read_weights
from imagen.training import train


@pytest.fixture(scope="module")
def enlarger(tmp_path_factory) -> RunFolder:
    folder = tmp_path_factory.mktemp("runs")
    fast = [
        "max_steps=400",
        "optimizer.lr=4e-3",
        "ema.decay=0.95",
        "schedule.logsnr_min=-8.0",
        "schedule.logsnr_max=4.0",
    ]
    return train(compose("train", ["experiment=toy_sr32", f"output_dir={folder}", "callback=[]", *fast]))


def test_loss_falls(enlarger):
    rows = [json.loads(line) for line in enlarger.metrics.read_text().splitlines()]
    losses = [row["value"] for row in rows if row["name"] == "train/loss"]
    assert sum(losses[-3:]) / 3 < 0.5 * losses[0]


def test_a_super_resolution_sample_downsampled_stays_near_its_input(enlarger):
    cfg = compose("train", ["experiment=toy_sr32"])
    data = build.build_data(cfg)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    stage = build.load_stage(read_weights(enlarger.path), "sr1")
    low_res = downsample(to_float(batch.image), 2)
    generators = [generator_of("learning", key) for key in batch.key]
    back = downsample(stage.sample(batch.text, low_res, generators), 2)
    own = (back - low_res).square().mean()
    others = (back - low_res.roll(1, dims=0)).square().mean()
    assert own.sqrt() < 0.35
    assert own < 0.2 * others
    assert (back.mean(dim=(0, 2, 3)) - low_res.mean(dim=(0, 2, 3))).abs().max() < 0.15  # no colour shift
    assert torch.isfinite(back).all()
