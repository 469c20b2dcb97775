import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from imagen import build
from imagen.callback import Checkpoint
from imagen.checkpoints import read_checkpoint
from imagen.cli import compose
from imagen.deadline import Deadline
from imagen.devices import machine_name
from imagen.errors import UserError
from imagen.lightning_module import DiffusionModule
from imagen.runs import RunFolder, read_weights
from imagen.training import train

ROOT = Path(__file__).parents[1]


def toy(tmp_path, *overrides: str) -> DictConfig:
    small = ["max_steps=6", "batch_size=4", "validate_every_n_steps=3", "data.num_workers=0"]
    quiet = [
        "callback=[checkpoint,loss_by_logsnr]",
        "callback.checkpoint.every_n_steps=2",
        "trainer.log_every_n_steps=1",
    ]
    return compose("train", ["experiment=toy", f"output_dir={tmp_path}", *small, *quiet, *overrides])


def rows(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def stop_after(monkeypatch, step: int) -> None:
    """Ctrl-C, as the user presses it, when ``step`` steps are done."""
    original = Checkpoint.on_train_batch_end

    def interrupted(self, trainer, *args, **kwargs):
        if trainer.global_step == step:
            signal.raise_signal(signal.SIGINT)
        original(self, trainer, *args, **kwargs)

    monkeypatch.setattr(Checkpoint, "on_train_batch_end", interrupted)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> RunFolder:
    return train(toy(tmp_path_factory.mktemp("whole")))


def test_a_run_leaves_what_the_contract_says(uninterrupted):
    names = {path.name for path in uninterrupted.path.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "weights.safetensors", "done.json"} <= names
    done = json.loads(uninterrupted.done.read_text())
    assert (done["step"], done["machine"]) == (6, f"{machine_name(torch.device('cpu'))} x 1")
    logged = rows(uninterrupted)
    assert {key: logged[-1][key] for key in ("step", "images")} == {"step": 6, "images": 24}
    assert [row["step"] for row in logged if row["name"] == "val/loss"] == [3, 6]
    assert [row["step"] for row in logged if row["name"] == "train/loss"] == [1, 2, 3, 4, 5, 6]
    assert any(row["name"].startswith("val/loss_logsnr_") for row in logged)


def test_old_checkpoints_are_pruned(uninterrupted):
    assert [path.name for path in uninterrupted.all_checkpoints()] == ["step_000000004.ckpt", "step_000000006.ckpt"]


@pytest.mark.parametrize("stop", [3, 4])
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(uninterrupted, tmp_path, monkeypatch, stop):
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(SystemExit) as stopped:
            train(toy(tmp_path))
    assert stopped.value.code == 128 + signal.SIGINT
    folder = train(toy(tmp_path))
    one, two = (read_checkpoint(f.all_checkpoints()[-1]) for f in (uninterrupted, folder))
    assert_equal(one["state_dict"], two["state_dict"])
    assert_equal(one["optimizer_states"], two["optimizer_states"])
    assert_equal(one["lr_schedulers"], two["lr_schedulers"])
    assert rows(folder) == rows(uninterrupted)


def test_accumulated_steps_resume_exactly_too(tmp_path, monkeypatch):
    overrides = ["micro_batch_size=2", "batch_size=4"]
    whole = train(toy(tmp_path / "whole", *overrides))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(SystemExit):
            train(toy(tmp_path / "parts", *overrides))
    parts = train(toy(tmp_path / "parts", *overrides))
    one, two = (read_checkpoint(folder.all_checkpoints()[-1]) for folder in (whole, parts))
    assert_equal(one["state_dict"], two["state_dict"])


def assert_equal(one, two) -> None:
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            assert_equal(left, right)
    else:
        assert one == two


def test_a_finished_run_is_left_alone(uninterrupted, capsys):
    before = uninterrupted.weights.stat().st_mtime_ns
    train(toy(uninterrupted.path.parents[1]))
    assert uninterrupted.weights.stat().st_mtime_ns == before
    assert "is finished" in capsys.readouterr().out


def test_export_is_the_average_of_the_last_checkpoint(uninterrupted):
    state = read_checkpoint(uninterrupted.all_checkpoints()[-1])["state_dict"]
    for name, value in read_weights(uninterrupted.path).state.items():
        assert torch.equal(value, state[f"ema.network.{name}"])


def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(uninterrupted, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(SystemExit):
            train(toy(tmp_path))
    folder = RunFolder.of(build.run_config(toy(tmp_path)))
    newest = folder.all_checkpoints()[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    train(toy(tmp_path))
    assert f"{newest.name}' is damaged" in caplog.text
    assert newest.with_name(f"{newest.name}.damaged").stat().st_size == 1000
    one, two = (read_weights(folder.path).state for folder in (uninterrupted, folder))
    assert_equal(one, two)
    assert rows(folder) == rows(uninterrupted)


def test_a_new_run_begins_with_the_weights_of_another_and_resumes_without_them(uninterrupted, tmp_path, capsys):
    (tmp_path / "moved").mkdir()
    export = tmp_path / "moved" / "weights.safetensors"
    export.write_bytes(uninterrupted.weights.read_bytes())
    begun = [f"init_from={export}", "max_steps=4", "optimizer.lr=0.0", "seed=3"]
    folder = train(toy(tmp_path, *begun))
    assert "took" in capsys.readouterr().out
    assert_equal(read_weights(folder.path).state, read_weights(uninterrupted.path).state)
    folder.done.unlink()
    export.unlink()
    assert train(toy(tmp_path, *begun)) == folder  # from its own checkpoint, though the weights are gone
    assert "took" not in capsys.readouterr().out


def test_resume_never_refuses_a_folder_in_use(uninterrupted, tmp_path):
    folder = RunFolder.of(build.run_config(toy(tmp_path)))
    folder.checkpoints.mkdir(parents=True)
    (folder.checkpoints / "step_000000002.ckpt").touch()
    with pytest.raises(UserError, match="resume=never"):
        train(toy(tmp_path, "resume=never"))


def test_a_checkpoint_of_another_config_is_refused_with_what_differs(uninterrupted, tmp_path):
    checkpoint = uninterrupted.all_checkpoints()[-1]
    for overrides, said in (
        (
            ["network.width=32", "optimizer=adafactor"],
            r"network\.width 16 there, 32 here, optimizer AdamW there, Adafactor here",
        ),
        (["ema=none"], "ema ExponentialEMA there, NoEMA here"),
        (["max_steps=5"], "is at step 6 already, past max_steps=5"),
    ):
        with pytest.raises(UserError, match=said):
            train(toy(tmp_path, f"resume={checkpoint}", *overrides))
    assert list(tmp_path.iterdir()) == []  # what is refused leaves nothing


def test_a_finished_run_is_trained_longer_from_its_checkpoint_and_stopped_goes_on(uninterrupted, tmp_path, monkeypatch):
    longer = [f"resume={uninterrupted.all_checkpoints()[-1]}", "max_steps=9"]
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(SystemExit):
            train(toy(tmp_path, *longer))
    folder = train(toy(tmp_path, *longer))
    assert json.loads(folder.done.read_text())["step"] == 9
    assert min(row["step"] for row in rows(folder)) == 7  # the second sitting went on from the first, not from 6


@pytest.mark.parametrize("micro_batch", [4, 2])
def test_a_run_that_is_out_of_time_leaves_a_checkpoint_and_goes_on_with_more(
    uninterrupted, tmp_path, monkeypatch, capsys, micro_batch
):
    original = Deadline.on_train_batch_end

    def hours_later(self, trainer, *args, **kwargs):
        self._offset = 3600 * trainer.global_step
        original(self, trainer, *args, **kwargs)

    monkeypatch.setattr(Deadline, "on_train_batch_end", hours_later)
    own = [f"micro_batch_size={micro_batch}", "callback.checkpoint.every_n_steps=1000"]
    with pytest.raises(SystemExit) as stopped:
        train(toy(tmp_path, *own, "+trainer.max_time=00:04:00:00"))
    assert stopped.value.code == 128
    assert "stopped at step 4 of 6 by trainer.max_time" in capsys.readouterr().out
    folder = train(toy(tmp_path, *own, "+trainer.max_time=01:00:00:00"))
    assert "from step 4" in capsys.readouterr().out
    assert json.loads(folder.done.read_text())["step"] == 6
    if micro_batch == 4:
        assert rows(folder) == rows(uninterrupted)


def test_what_the_guard_advises_is_so_a_checkpoint_goes_on_with_a_lower_rate(tmp_path, monkeypatch):
    plain = DiffusionModule.training_step
    with monkeypatch.context() as patch:
        patch.setattr(
            DiffusionModule,
            "training_step",
            lambda self, *args: plain(self, *args) * (math.nan if self.trainer.global_step >= 4 else 1.0),
        )
        stops = ["callback=[checkpoint,guard]", "callback.guard.max_in_a_row=1", "callback.guard.then=stop"]
        with pytest.raises(
            UserError, match=r"go on from a checkpoint by resume= with another setting, a lower optimizer\.lr say"
        ):
            train(toy(tmp_path / "one", *stops, "callback.checkpoint.keep=9"))
    (good,) = (tmp_path / "one").rglob("step_000000004.ckpt")
    none, lower = (
        train(toy(tmp_path / "two", f"resume={good}", f"optimizer.lr={lr}", "optimizer.fused=false"))
        for lr in (0.0, 0.001)
    )
    begun, still, moved = (read_checkpoint(path) for path in (good, *(f.all_checkpoints()[-1] for f in (none, lower))))
    weights = [name for name in begun["state_dict"] if name.startswith("denoiser.")]
    for name in weights:
        assert torch.equal(still["state_dict"][name], begun["state_dict"][name])
    assert any(not torch.equal(moved["state_dict"][name], begun["state_dict"][name]) for name in weights)
    assert begun["lr_schedulers"][0]["base_lrs"] == [0.002]
    assert moved["lr_schedulers"][0]["base_lrs"] == [0.001]
    (group,) = moved["optimizer_states"][0]["param_groups"]
    assert (group["initial_lr"], group["fused"]) == (0.001, False)


def test_garbage_to_resume_from_is_told(tmp_path):
    (tmp_path / "garbage.ckpt").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"garbage\.ckpt' is damaged.*give another"):
        train(toy(tmp_path / "outputs", f"resume={tmp_path}/garbage.ckpt"))


def test_a_run_in_training_is_refused_to_a_second_process(tmp_path):
    cfg = toy(tmp_path)
    with RunFolder.of(build.run_config(cfg)).held(), pytest.raises(UserError, match="trained by another process"):
        train(cfg)


def test_an_output_folder_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"output_dir=.* cannot be made a folder"):
        train(toy(tmp_path / "file"))


@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_wandb_without_an_account_is_told_in_one_sentence(tmp_path):
    # in a process of its own: wandb keeps the mode that another test's run began in
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")} | nobody
    command = [sys.executable, str(ROOT / "train.py"), "experiment=toy", "logger=[wandb]", f"output_dir={tmp_path}"]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(r"^error: logger=wandb cannot begin .*WANDB_MODE=offline.*logger=\[\]", done.stderr, re.MULTILINE)
