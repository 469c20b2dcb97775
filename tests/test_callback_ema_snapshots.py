"""Snapshots of the averages: whole stages, the same in a run that was stopped, none of a future that never was."""

import shutil
import signal

import pytest
import torch

from imagen import build
from imagen.callback import Checkpoint, EMASnapshots
from imagen.checkpoints import read_checkpoint
from imagen.cli import compose
from imagen.ema import reconstruct
from imagen.errors import UserError
from imagen.runs import RunFolder, read_weights
from imagen.training import train


def toy(tmp_path, *overrides: str):
    small = ["max_steps=6", "batch_size=2", "validate_every_n_steps=6", "data.num_workers=0", "ema=power"]
    saving = ["callback=[checkpoint,ema_snapshots]", "callback.ema_snapshots.every_n_steps=2"]
    checkpoints = "callback.checkpoint.every_n_steps=3"
    return compose("train", ["experiment=toy", f"output_dir={tmp_path}", *small, *saving, checkpoints, *overrides])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunFolder:
    return train(toy(tmp_path_factory.mktemp("whole")))


def test_each_length_is_saved_on_time_under_its_step(whole):
    names = [path.name for path in whole.all_snapshots()]
    assert names == [f"step_00000000{step}_{sigma}.safetensors" for step in (2, 4, 6) for sigma in ("0.05", "0.1")]
    weights = [read_weights(path) for path in whole.all_snapshots()]
    assert [(w.step, w.sigma_rel) for w in weights[:2]] == [(2, 0.05), (2, 0.1)]


def test_the_last_snapshots_are_the_averages_and_export_uses_the_first(whole):
    state = read_checkpoint(whole.all_checkpoints()[-1])["state_dict"]
    exported, short, long = (read_weights(path).state for path in (whole.weights, *whole.all_snapshots()[-2:]))
    for name, value in exported.items():
        assert torch.equal(value, short[name])
        assert torch.equal(value, state[f"ema.network.{name}"])
        assert torch.equal(long[name], state[f"ema.others.0.{name}"])
    assert any(not torch.equal(long[name], value) for name, value in short.items())


def test_snapshots_and_what_is_made_of_them_are_stages(whole):
    state = reconstruct(whole.path, 0.1)
    weights = read_weights(whole.all_snapshots()[-1])
    torch.testing.assert_close(state, weights.state, rtol=1e-5, atol=1e-6)
    weights.state = reconstruct(whole.path, 0.07)
    network = build.load_stage(weights, "base").denoiser.network
    torch.testing.assert_close(dict(network.state_dict()), weights.state)


def test_interrupted_and_resumed_leaves_the_same_snapshots_and_none_of_a_lost_future(whole, tmp_path, monkeypatch):
    original = Checkpoint.on_train_batch_end

    def interrupted(self, trainer, *args, **kwargs):
        if trainer.global_step == 3:
            signal.raise_signal(signal.SIGINT)
        original(self, trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "on_train_batch_end", interrupted)
        with pytest.raises(SystemExit):
            train(toy(tmp_path))
    folder = RunFolder.of(build.run_config(toy(tmp_path)))
    for step in (4, 5):  # a sitting that went on further, and whose checkpoints are lost
        shutil.copy(whole.all_snapshots()[-1], folder.snapshots / f"step_00000000{step}_0.05.safetensors")
    train(toy(tmp_path))
    assert [path.name for path in folder.all_snapshots()] == [path.name for path in whole.all_snapshots()]
    for one, two in zip(folder.all_snapshots(), whole.all_snapshots(), strict=True):
        torch.testing.assert_close(read_weights(one).state, read_weights(two).state, rtol=0, atol=0)
    ends = [read_checkpoint(f.all_checkpoints()[-1])["state_dict"] for f in (folder, whole)]
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_buffers_are_kept_exactly_beside_parameters_of_less_precision(tmp_path):
    cfg = toy(tmp_path, "null_text=empty_caption", "callback.ema_snapshots.dtype=bfloat16", "max_steps=2")
    folder = train(cfg)
    exported, snapshot = (read_weights(path).state for path in (folder.weights, folder.all_snapshots()[0]))
    made = reconstruct(folder.path, 0.07)
    assert exported.keys() == snapshot.keys() == made.keys()
    parameters = {name for name, _ in build.build_network(cfg).named_parameters()}
    buffers = exported.keys() - parameters
    assert len(buffers) == 2
    for name in buffers:
        assert torch.equal(snapshot[name], exported[name])
        assert torch.equal(made[name], exported[name])
    name = max(parameters, key=lambda name: exported[name].numel())
    assert torch.equal(snapshot[name], exported[name].bfloat16().float())


def test_other_averages_and_unknown_precisions_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"ema_snapshots does not go with ExponentialEMA.*set ema=power"):
        train(toy(tmp_path, "ema=exponential"))
    with pytest.raises(UserError, match="dtype=float16 of ema_snapshots must be one of float32, bfloat16"):
        EMASnapshots(every_n_steps=1, dtype="float16")
