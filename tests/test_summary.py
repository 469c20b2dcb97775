import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from imagen import build
from imagen.cli import compose
from imagen.errors import UserError
from imagen.summary import _activation_bytes, _forward_flops, _training_flops, main, summarize


class OneConv(nn.Module):
    """3 -> 8 channels and a square: 2 * 27 * 8 operations a pixel, input and square's operand kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(x).square()


def test_counts_have_their_closed_form():
    network, x = OneConv().to("meta"), torch.zeros(1, 3, 16, 16, device="meta")
    cfg = compose("train", ["experiment=toy"])
    assert _forward_flops(network, (x,)) == 2 * 27 * 8 * 16 * 16
    # backward: of the weight alone, since nobody asks for the picture's gradient
    assert _training_flops(network, (x,)) == 2 * 2 * 27 * 8 * 16 * 16
    assert _activation_bytes(cfg, network, (x,)) == 4 * (3 + 8) * 16 * 16


def test_summary_of_a_network_built_for_real():
    cfg = compose("train", ["experiment=toy", "ema=none"])
    summary = summarize(cfg)
    network = build.build_network(cfg)
    assert summary["parameters"] == sum(p.numel() for p in network.parameters())
    assert summary["ema_bytes"] == 0
    assert summary["optimizer_bytes"] == pytest.approx(8 * summary["parameters"], rel=0.01)
    assert summary["shapes"]["output"] == [1, 3, 16, 16]


def test_adafactors_state_is_counted_as_it_will_be():
    cfg = compose("train", ["experiment=toy", "optimizer=adafactor"])
    network = build.build_network(cfg)
    optimizer = build.instantiate(cfg.optimizer)(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for of_one in optimizer.state.values() for value in of_one.values()]
    assert summarize(cfg)["optimizer_bytes"] == sum(4 * value.numel() for value in state)


def test_a_crop_makes_training_cheaper_not_the_forward():
    whole, cropped = (summarize(compose("train", ["experiment=toy_sr32", crop])) for crop in ("seed=0", "data.crop=16"))
    assert cropped["forward_flops"] == whole["forward_flops"]
    assert 3 * cropped["activation_bytes"] < whole["activation_bytes"]
    assert 3 * cropped["training_flops"] < whole["training_flops"]
    assert whole["training_flops"] == pytest.approx(3 * whole["forward_flops"], rel=0.02)


def test_the_command_prints_json():
    command = [sys.executable, "-m", "imagen.summary", "experiment=toy_sr32", "--json"]
    out = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True).stdout
    keys = {
        "parameters",
        "forward_flops",
        "training_flops",
        "activation_bytes",
        "ema_bytes",
        "optimizer_bytes",
        "shapes",
    }
    assert set(json.loads(out)) == keys


def test_the_command_helps_and_refuses_what_it_does_not_know(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["summary", "experiment=toy", "--help"])
    main()
    assert "python -m imagen.summary experiment=" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["summary", "experiment=toy", "--jsn"])
    with pytest.raises(SystemExit, match="--jsn is not an option: there are --json, --markdown and --help"):
        main()


def test_what_training_would_refuse_is_refused():
    with pytest.raises(UserError, match=r"network\.out_channels=3 does not go with"):
        summarize(compose("train", ["experiment=toy", "parameterization=epsilon_learned_variance"]))
