"""Every file of conf/experiment composes, builds on the meta device, and says what the house rules ask."""

import pytest
import torch
from omegaconf import OmegaConf

from imagen import build
from imagen.cli import CONF, compose
from imagen.summary import example, summarize

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_composes_and_its_network_runs_on_the_meta_device(name):
    cfg = compose("train", [f"experiment={name}"])
    if OmegaConf.is_missing(cfg.data, "root"):
        cfg.data.root = "data/mine"
    with torch.device("meta"):
        module = build.build_module(cfg)
        inputs = example(cfg, cfg.resolution)
    assert module.denoiser.network(*inputs).shape == (1, 3, cfg.resolution, cfg.resolution)
    module.configure_optimizers()
    build.build_data(cfg)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_header_gives_command_cost_and_expectation(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n")
    for part in (f"# Command: python train.py experiment={name}", "Cost:", "Expected:"):
        assert part in text
    assert compose("train", [f"experiment={name}"]).name == name


def test_the_papers_base_network_is_summarized_without_being_built():
    summary = summarize(compose("train", ["data=synthetic", "text_encoder=t5_xxl", "network=unet"]))
    assert 2.0e9 < summary["parameters"] < 2.4e9
    assert summary["ema_bytes"] == 4 * summary["parameters"]
    assert summary["optimizer_bytes"] >= 8 * summary["parameters"]
