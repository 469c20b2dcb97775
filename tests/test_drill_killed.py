"""A training killed again and again, in the midst of a checkpoint's writing too, ends as if nothing had happened."""

import json
import os
import random
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from imagen import build
from imagen.checkpoints import read_checkpoint
from imagen.cli import compose
from imagen.lightning_module import DiffusionModule
from imagen.runs import RunFolder, read_weights
from imagen.training import train

pytestmark = pytest.mark.drill

STEPS, KILLS, WITHIN_A_WRITE = 160, 20, 5


def toy(folder: Path) -> DictConfig:
    small = [f"max_steps={STEPS}", "batch_size=4", "validate_every_n_steps=1000", "data.num_workers=0"]
    often = ["callback=[checkpoint,guard]", "callback.checkpoint.every_n_steps=3", "trainer.log_every_n_steps=1"]
    return compose("train", ["experiment=toy", "ema=power", f"output_dir={folder}", *small, *often])


def sitting(cfg: DictConfig, record: Path) -> int:
    """A training in a process of its own, forked, so that nothing is imported anew; its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with (record.with_suffix(".log")).open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        plain = DiffusionModule.training_step

        def recording(self: DiffusionModule, batch: Any, batch_idx: int) -> Any:
            with record.open("a") as file:
                file.write(json.dumps([self.trainer.global_step, batch.key]) + "\n")
            return plain(self, batch, batch_idx)

        DiffusionModule.training_step = recording
        train(cfg)
        status = 0
    finally:
        os._exit(status)


def ended(child: int) -> int | None:
    number, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if number else None


def trained_on(record: Path) -> list[tuple[int, list[str]]]:
    lines = record.read_text().splitlines()
    return [(step, keys) for step, keys in map(json.loads, [line for line in lines if line.endswith("]]")])]


def test_killed_at_random_moments(tmp_path: Path):
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    warnings.simplefilter("ignore", DeprecationWarning)  # of that, which it does not need
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    child = sitting(toy(tmp_path / "whole"), whole)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, whole.with_suffix(".log").read_text()

    cfg, rng, killed, within = toy(tmp_path / "parts"), random.Random(0), 0, 0
    folder = RunFolder.of(build.run_config(cfg))
    while killed < KILLS:
        child = sitting(cfg, parts)
        begun = len(trained_on(parts)) if parts.exists() else 0
        steps, hunting = rng.randint(1, 10), within < WITHIN_A_WRITE
        while True:  # until it has gone so many steps or, hunting, is within a write after them
            status = ended(child)
            assert status is None, f"ended with {status} before it was killed: {parts.with_suffix('.log').read_text()}"
            gone = len(trained_on(parts)) - begun if parts.exists() else 0
            writing = folder.checkpoints.is_dir() and any(folder.checkpoints.glob(".*.tmp"))
            if gone >= steps and (writing or not hunting):
                break
            time.sleep(0 if hunting and gone >= steps else rng.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
        within += any(folder.checkpoints.glob(".*.tmp")) if folder.checkpoints.is_dir() else 0
    child = sitting(cfg, parts)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, parts.with_suffix(".log").read_text()
    print(f"{within} of {killed} kills hit a checkpoint's writing")
    assert within >= WITHIN_A_WRITE, f"{within} of {killed} kills hit a write"

    other = RunFolder.of(build.run_config(toy(tmp_path / "whole")))
    for name, value in read_weights(other.path).state.items():
        assert torch.equal(value, read_weights(folder.path).state[name]), name
    ends = [read_checkpoint(made.all_checkpoints()[-1]) for made in (other, folder)]
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name
    assert folder.metrics.read_text() == other.metrics.read_text()
    unstopped = dict(trained_on(whole))
    assert sorted(unstopped) == list(range(STEPS))
    again = trained_on(parts)
    assert {step for step, _ in again} == set(unstopped)
    assert all(keys == unstopped[step] for step, keys in again)  # whenever a step is taken, it is on its own pictures
    assert not list(folder.path.rglob(".*.tmp"))
