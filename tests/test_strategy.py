"""One process, DDP and FSDP2 train the same network from the same config, and take over each other's checkpoints."""

import json
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import small_set
import torch
from processes import train_on_two_ranks
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from imagen.checkpoints import read_checkpoint
from imagen.cli import compose
from imagen.runs import read_weights
from imagen.strategy import DDP, FSDP2
from imagen.training import train

TOY = ["experiment=toy", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "data.num_workers=0"]
TOY += ["callback=[checkpoint]", "callback.checkpoint.every_n_steps=2", "max_steps=4", "validate_every_n_steps=2"]
TOY += ["optimizer.eps=1.0e-3"]  # Adam blows the rounding of gradients near zero up to whole steps
TOY += ["trainer.gradient_clip_val=0.1"]  # less than the gradients' norm, so that it cuts
KINDS = {"one": [], "ddp": ["trainer=ddp", "trainer.devices=2"], "fsdp2": ["trainer=fsdp2", "trainer.devices=2"]}
KINDS["sharded"] = [*KINDS["fsdp2"], "trainer.strategy.sharded_checkpoints=true"]


def overrides(output: Path, kind: str, *more: str) -> list[str]:
    """``trainer=`` comes first, or it would undo what is set of the trainer."""
    return [*KINDS[kind], *TOY, f"output_dir={output}", *more]


def run_of(output: Path) -> Path:
    (folder,) = output.glob("toy/*")
    return folder


def losses(output: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_of(output) / "metrics.jsonl").read_text().splitlines()]
    return [row["value"] for row in rows if row["name"] in ("train/loss", "val/loss")]


def assert_same_run(output: Path, other: Path, tolerance: float = 1e-5) -> None:
    """The same losses, and the same averaged weights."""
    assert losses(output) == pytest.approx(losses(other), abs=tolerance)
    averages = [read_weights(run_of(folder) / "weights.safetensors").state for folder in (output, other)]
    assert averages[0].keys() == averages[1].keys()
    for name, value in averages[0].items():
        torch.testing.assert_close(value, averages[1][name], atol=tolerance, rtol=1e-5)


def checkpoint(output: Path, step: int) -> Path:
    return run_of(output) / f"checkpoints/step_{step:09d}.ckpt"


def test_ddp_and_fsdp2_train_as_one_process_does(tmp_path: Path):
    more = ["weighting=uncertainty", "weighting.num_features=4"]
    train(compose("train", overrides(tmp_path / "one", "one", *more)))
    pair = [overrides(tmp_path / kind, kind, *more) for kind in ("ddp", "fsdp2")]
    train_on_two_ranks(pair, tmp_path)
    for kind in ("ddp", "fsdp2"):
        assert_same_run(tmp_path / kind, tmp_path / "one")
        whole, other = (read_checkpoint(checkpoint(tmp_path / name, 4)) for name in ("one", kind))
        assert whole["state_dict"].keys() == other["state_dict"].keys()
        assert not any(isinstance(value, torch.distributed.tensor.DTensor) for value in other["state_dict"].values())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    small_set.write_split(root, "train", [10, 7, 12], size=16)
    small_set.write_split(root, "val", [6], size=16)
    return root


@pytest.mark.drill
def test_a_checkpoint_of_any_kind_goes_on_under_every_other(tmp_path: Path, shards: Path):
    more = ["data=webdataset", "resolution=16", f"data.root={shards}", "data.window=2", "batch_size=6", "ema=power"]
    more += ["text_encoder.width=8", "text_encoder.max_length=16", "micro_batch_size=2", "data.num_workers=0"]
    snapshots = ["callback=[checkpoint,ema_snapshots,sample_grid]", "callback.ema_snapshots.every_n_steps=2"]
    snapshots += ["callback.sample_grid.every_n_steps=2", "sampler.num_steps=2"]

    def training(name: str, kind: str, *extra: str) -> list[str]:
        return overrides(tmp_path / name, kind, *more, *snapshots, *extra)

    train(compose("train", training("one", "one")))
    train_on_two_ranks([training(kind, kind) for kind in KINDS if kind != "one"], tmp_path, 1500)
    resumed = {
        f"{first}-{then}": training(f"{first}-{then}", then, f"resume={checkpoint(tmp_path / first, 2)}")
        for first in KINDS
        for then in KINDS
    }
    for name, command in resumed.items():
        if name.endswith("-one"):
            train(compose("train", command))
    train_on_two_ranks([command for name, command in resumed.items() if not name.endswith("-one")], tmp_path, 1500)
    for kind in KINDS:
        assert_same_run(tmp_path / kind, tmp_path / "one")
        files = sorted(path.name for path in (run_of(tmp_path / kind) / "snapshots").iterdir())
        assert files == sorted(path.name for path in (run_of(tmp_path / "one") / "snapshots").iterdir())
    expected = losses(tmp_path / "one")[-3:]  # of steps 3 and 4, and of validation
    for name in resumed:
        assert losses(tmp_path / name) == pytest.approx(expected, abs=1e-5), name
    assert checkpoint(tmp_path / "sharded", 4).is_dir()
    averages = [read_weights(checkpoint(tmp_path / kind, 4)).state for kind in KINDS]
    for name, value in averages[0].items():
        for other in averages[1:]:
            torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.drill
def test_micro_batches_train_the_same_network_wherever_their_gradients_are_reduced(tmp_path: Path):
    more, once = ["micro_batch_size=2"], ["trainer.strategy.reduce_every_micro_batch=false"]
    more += ["weighting=uncertainty", "weighting.num_features=4"]  # which has parameters, sharded by themselves
    train(compose("train", overrides(tmp_path / "one", "one", *more)))
    pair = {"ddp": ("ddp", []), "each": ("fsdp2", []), "once": ("fsdp2", once)}
    trainings = [overrides(tmp_path / name, kind, *more, *extra) for name, (kind, extra) in pair.items()]
    train_on_two_ranks(trainings, tmp_path)
    for name in pair:
        assert_same_run(tmp_path / name, tmp_path / "one")


DDP_OPTIONS = {"gradient_as_bucket_view": True, "static_graph": True, "bucket_cap_mb": 1, "timeout_minutes": 1}


def test_gradients_may_travel_in_half_the_bytes():
    assert DDP(bf16_gradients=False, **DDP_OPTIONS)._ddp_comm_hook is None
    assert DDP(bf16_gradients=True, **DDP_OPTIONS)._ddp_comm_hook is bf16_compress_hook


def test_ddp_sends_nothing_while_micro_batches_accumulate_but_in_the_first_pass():
    strategy = DDP(bf16_gradients=False, **DDP_OPTIONS)
    strategy.model = MagicMock(spec=DistributedDataParallel)
    for calls in range(3):
        with strategy.block_backward_sync():
            assert strategy.model.no_sync.call_count == calls


@pytest.mark.parametrize("every", [True, False])
def test_fsdp2_sends_nothing_while_micro_batches_accumulate_if_asked(every: bool):
    strategy = FSDP2(sharded_checkpoints=False, reduce_every_micro_batch=every, timeout_minutes=1)
    divided = MagicMock()
    strategy._divided = [divided]
    with strategy.block_backward_sync():
        divided.set_requires_gradient_sync.assert_called_with(every)
    divided.set_requires_gradient_sync.assert_called_with(True)
