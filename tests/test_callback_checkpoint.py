import os
import signal
import time
from pathlib import Path

import pytest
from omegaconf import DictConfig

import imagen.background
from imagen import build
from imagen.callback import Checkpoint
from imagen.checkpoints import read_checkpoint
from imagen.cli import compose
from imagen.runs import RunFolder
from imagen.training import train


def toy(folder: Path, *overrides: str) -> DictConfig:
    small = ["max_steps=4", "batch_size=4", "validate_every_n_steps=4", "data.num_workers=0", "callback=[checkpoint]"]
    return compose("train", ["experiment=toy", f"output_dir={folder}", *small, *overrides])


def steps(folder: RunFolder) -> list[int]:
    return [int(path.stem[-9:]) for path in folder.all_checkpoints()]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, do) -> None:
    plain = Checkpoint.on_train_batch_end

    def and_then(self, trainer, *args, **kwargs):
        if trainer.global_step == step:
            do(self)
        plain(self, trainer, *args, **kwargs)

    monkeypatch.setattr(Checkpoint, "on_train_batch_end", and_then)


def test_a_checkpoint_holds_all_that_training_is_a_function_of(tmp_path):
    folder = train(toy(tmp_path, "ema=power"))
    checkpoint = read_checkpoint(folder.all_checkpoints()[-1])
    names = set(checkpoint["state_dict"])
    for prefix in ("denoiser.network.", "ema.network.", "ema.others.0."):
        assert any(name.startswith(prefix) for name in names)
    (optimizer,) = checkpoint["optimizer_states"]
    assert {"exp_avg", "exp_avg_sq", "step"} <= set(optimizer["state"][0])
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 4
    assert checkpoint["SyntheticModule"]["batches"] == 4
    (state,) = checkpoint["random_states"]
    assert set(state) == {"python", "numpy", "torch", "cuda"}
    assert checkpoint["imagen"]["config"]["ema"]["_target_"].endswith("PowerEMA")


def test_time_makes_one_due_as_steps_do(tmp_path, monkeypatch):
    def later(self):
        self._last -= 60 * self.every_n_minutes

    at_step(monkeypatch, 2, later)
    folder = train(toy(tmp_path, "callback.checkpoint.every_n_minutes=7"))
    assert steps(folder) == [2, 4]


def test_the_last_one_stays_until_the_next_is_whole(tmp_path, monkeypatch):
    plain, seen = imagen.background.write_checkpoint, []

    def slow(checkpoint, path):
        time.sleep(0.05)
        seen.append([other.name for other in path.parent.glob("*.ckpt")] if path.parent.exists() else [])
        plain(checkpoint, path)

    monkeypatch.setattr(imagen.background, "write_checkpoint", slow)
    train(toy(tmp_path, "callback.checkpoint.every_n_steps=1", "callback.checkpoint.keep=1"))
    assert [len(names) for names in seen] == [0, 1, 1, 1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_that_ends_the_job_leaves_a_whole_checkpoint(tmp_path, monkeypatch, number, capsys):
    before = signal.getsignal(number)
    at_step(monkeypatch, 2, lambda self: signal.raise_signal(number))
    with pytest.raises(SystemExit) as stopped:
        train(toy(tmp_path))
    assert stopped.value.code == 128 + number
    assert f"stopped at step 2 by {number.name}" in capsys.readouterr().out
    folder = RunFolder.of(build.run_config(toy(tmp_path)))
    assert read_checkpoint(folder.all_checkpoints()[-1])["global_step"] == 2
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("fails", [False, True])
def test_slurm_is_asked_to_run_the_job_again(tmp_path, monkeypatch, caplog, fails):
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho Invalid job >&2\nexit {int(fails)}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    slurm = {"NTASKS": "1", "JOB_ID": "7", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    at_step(monkeypatch, 2, lambda self: signal.raise_signal(signal.SIGUSR1))
    with pytest.raises(SystemExit) as stopped:
        train(toy(tmp_path / "outputs"))
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert ("is not back in the queue (Invalid job)" in caplog.text) == fails
    assert not list(tmp_path.rglob("hpc_ckpt*"))  # Lightning's own, of the middle of a step


def test_a_write_that_fails_ends_the_run_and_says_so(tmp_path, monkeypatch):
    plain = imagen.background.write_checkpoint

    def full(checkpoint, path):
        if checkpoint["global_step"] == 2:
            raise OSError(28, "No space left on device", str(path))
        plain(checkpoint, path)

    monkeypatch.setattr(imagen.background, "write_checkpoint", full)
    cfg = toy(tmp_path, "callback.checkpoint.every_n_steps=1")
    with pytest.raises(OSError, match=r"No space.*step_000000002\.ckpt"):
        train(cfg)
    assert steps(RunFolder.of(build.run_config(cfg))) == [1]
