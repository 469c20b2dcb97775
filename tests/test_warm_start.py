from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from imagen import build
from imagen.checkpoints import checkpoint_name, write_checkpoint
from imagen.cli import compose
from imagen.errors import UserError
from imagen.runs import RunFolder, Weights
from imagen.warm_start import take_weights

TOY = ["experiment=toy", "data.num_workers=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """What a training of another seed leaves: a checkpoint and an export, both with the average."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    config = build.run_config(compose("train", [*TOY, "seed=5"]))
    state = build.build_network(compose("train", [*TOY, "seed=5"])).state_dict()
    Weights(state, config, {}, 7).save(folder.weights)
    kept = {"imagen": {"config": config, "text_fingerprint": {}, "seconds": 1.0}, "global_step": 7}
    averaged = {f"ema.network.{name}": value for name, value in state.items()}
    write_checkpoint({**kept, "state_dict": averaged}, folder.checkpoints / checkpoint_name(7))
    return folder


@pytest.mark.parametrize(
    "source",
    [lambda run: run.path, lambda run: run.weights, lambda run: run.all_checkpoints()[0]],
    ids=["folder", "export", "checkpoint"],
)
def test_a_run_is_taken_whole_by_the_network_and_its_average(run: RunFolder, source: Callable[[RunFolder], Path]):
    cfg = compose("train", [*TOY, "ema=power"])
    said: list[str] = []
    module = build.build_module(cfg, lambda network: said.append(take_weights(network, source(run), {})))
    assert "('toy', step 7): took" in said[0]
    assert "100.0% of the weights" in said[0]
    assert "\n" not in said[0]
    there = build.build_network(compose("train", [*TOY, "seed=5"]))
    for network in (module.denoiser.network, *(network for _, network in module.ema.tracks())):
        for name, value in network.named_parameters():
            assert torch.equal(value, dict(there.named_parameters())[name])


def test_another_text_width_is_left_out_and_said(run: RunFolder):
    cfg = compose("train", [*TOY, "text_encoder.width=24", "parameterization=x0"])
    network = build.build_network(cfg)
    before = {name: value.clone() for name, value in network.named_parameters()}
    said = take_weights(network, run.weights, build.run_config(cfg))
    taken = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert 0 < len(taken) < len(before)
    assert "left as they begin: " in said
    assert "x24 here" in said
    assert "\n  trained otherwise: " in said
    assert "parameterization V there, X0 here" in said
    assert len(said.splitlines()) <= 4


def test_what_does_not_fit_is_refused(run: RunFolder):
    with pytest.raises(
        UserError, match=r"does not fit this network: of its weights 0\.0% .*first that has not: weight"
    ):
        take_weights(nn.Linear(3, 3), run.path, {})
    with pytest.raises(UserError, match="does not exist"):
        take_weights(nn.Linear(3, 3), run.path / "none", {})
