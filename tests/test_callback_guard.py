import json
import logging
import math
import re
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from imagen import build
from imagen.callback import guard
from imagen.checkpoints import read_checkpoint
from imagen.cli import compose
from imagen.errors import UserError
from imagen.faults import read_batch, read_rollbacks
from imagen.lightning_module import DiffusionModule
from imagen.runs import RunFolder, read_weights
from imagen.training import train


def toy(folder: Path, *overrides: str) -> DictConfig:
    small = ["max_steps=6", "batch_size=4", "validate_every_n_steps=6", "data.num_workers=0"]
    quiet = ["callback=[checkpoint,guard]", "callback.checkpoint.every_n_steps=2", "trainer.log_every_n_steps=1"]
    return compose("train", ["experiment=toy", f"output_dir={folder}", *small, *quiet, *overrides])


def spoil(monkeypatch: pytest.MonkeyPatch, when, factor: float = math.nan) -> list[int]:
    """Losses of the steps that ``when`` says are multiplied by ``factor``; the steps, as they are taken."""
    plain, taken = DiffusionModule.training_step, []

    def spoiled(self, batch, batch_idx):
        step = self.trainer.global_step
        taken.append(step)
        return plain(self, batch, batch_idx) * (factor if when(step, self) else 1.0)

    monkeypatch.setattr(DiffusionModule, "training_step", spoiled)
    return taken


def states(folder: RunFolder) -> dict[int, dict]:
    return {int(path.stem[-9:]): read_checkpoint(path) for path in folder.all_checkpoints()}


@pytest.mark.parametrize("optimizer", ["optimizer.fused=true", "optimizer.fused=false", "optimizer=adafactor"])
def test_a_step_without_a_finite_loss_changes_nothing_and_counts(tmp_path, monkeypatch, optimizer):
    spoil(monkeypatch, lambda step, _: step == 3)
    folder = train(toy(tmp_path, optimizer, "callback.checkpoint.every_n_steps=1", "callback.checkpoint.keep=9"))
    kept = states(folder)
    for name, before in kept[3]["state_dict"].items():
        after = kept[4]["state_dict"][name]
        assert after.isfinite().all()
        if name.startswith("denoiser."):
            assert torch.equal(after, before), name
    moments = [kept[n]["optimizer_states"][0]["state"] for n in (3, 4)]
    for i, before in moments[0].items():
        assert all(torch.equal(before[key], moments[1][i][key]) for key in before)
    assert kept[4]["lr_schedulers"][0]["last_epoch"] == 4
    assert any(
        not torch.equal(value, kept[5]["state_dict"][name])
        for name, value in kept[4]["state_dict"].items()
        if name.startswith("denoiser.")
    )


def test_the_batch_of_a_skipped_step_can_be_looked_at(tmp_path, monkeypatch):
    spoil(monkeypatch, lambda step, _: step == 3)
    cfg = toy(tmp_path, "micro_batch_size=2")
    folder = train(cfg)
    monkeypatch.undo()
    files = sorted(path.name for path in folder.faults.iterdir())
    assert files == [f"step_000000004_rank_0_part_{i}.safetensors" for i in range(2)]
    batch, known = read_batch(folder.faults / files[1])
    assert known["step"] == 4
    assert (known["loss"], known["gradient_norm"]) == ("nan", "nan")
    assert (batch.place.first, batch.place.total, len(batch.key)) == (2, 4, 2)
    # its draws are made again from what was written down
    module = build.build_module(cfg)
    address = module.address(batch, known["drawn_at"], known["seed"])
    assert module.loss(module.denoiser, batch, address, training=True).per_example.isfinite().all()
    with pytest.raises(UserError, match=r"was not saved by a training"):
        read_batch(folder.weights)


def test_a_gradient_that_overflows_is_skipped_though_the_loss_is_finite(tmp_path, monkeypatch):
    spoil(monkeypatch, lambda step, _: step == 3, 1e38)
    folder = train(toy(tmp_path))
    (_,) = folder.faults.iterdir()
    assert all(value.isfinite().all() for value in read_weights(folder.path).state.values())


def test_a_run_without_faults_is_the_same_with_and_without_a_guard(tmp_path):
    one = train(toy(tmp_path / "one"))
    two = train(toy(tmp_path / "two", "callback=[checkpoint]"))
    for name, value in read_weights(one.path).state.items():
        assert torch.equal(value, read_weights(two.path).state[name])
    assert not one.faults.exists()


def test_many_in_a_row_take_the_run_back_and_other_draws_bring_it_through(tmp_path, monkeypatch, capsys):
    # as a run does that these draws lead astray: the first time, and only with them
    taken = spoil(monkeypatch, lambda step, module: step >= 3 and module.training_seed == module.seed)
    folder = train(toy(tmp_path, "callback.guard.max_in_a_row=2", "max_steps=8", "callback.checkpoint.keep=9"))
    assert taken == [0, 1, 2, 3, 4, 5, *range(2, 8)]  # a row of two is known one step later
    assert re.search(r"going back to the (checkpoint|beginning).*, for time 1 of 2", capsys.readouterr().out)
    (rollback,) = read_rollbacks(folder.faults, 8)
    assert (rollback.failed, rollback.back_to) == (5, 2)
    assert json.loads(folder.done.read_text())["step"] == 8
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if row["name"] == "train/loss"] == list(range(1, 9))


def test_ways_back_that_led_on_are_not_counted(tmp_path, monkeypatch, capsys):
    seeds: list[int] = []

    def astray(step: int, module: DiffusionModule) -> bool:
        seeds.extend({module.training_seed} - set(seeds))
        return seeds.index(module.training_seed) < 2 and step >= 3 * len(seeds)  # from 3 on, and from 6 on

    spoil(monkeypatch, astray)
    options = ["callback.guard.max_in_a_row=2", "callback.guard.max_rollbacks=1", "callback.checkpoint.keep=9"]
    folder = train(toy(tmp_path, *options, "max_steps=10"))
    assert [(way.failed, way.back_to) for way in read_rollbacks(folder.faults, 10)] == [(5, 2), (8, 6)]
    assert capsys.readouterr().out.count("for time 1 of 1") == 2


@pytest.mark.parametrize(("then", "times"), [("rollback", 1), ("stop", 0)])
def test_a_run_that_cannot_be_helped_stops_in_one_sentence_with_its_checkpoints(tmp_path, monkeypatch, then, times):
    taken = spoil(monkeypatch, lambda step, _: step >= 3)
    options = [f"callback.guard.{key}" for key in ("max_in_a_row=2", "max_rollbacks=1", f"then={then}")]
    cfg = toy(tmp_path, *options, "callback.checkpoint.keep=9", "max_steps=9")
    with pytest.raises(
        UserError, match=r"2 steps in a row, the last of them 5, had no finite loss.*lower optimizer\.lr"
    ):
        train(cfg)
    assert taken == [0, 1, 2, 3, 4, 5, *([2, 3, 4, 5] * times)]
    folder = RunFolder.of(build.run_config(cfg))
    assert not folder.done.exists()
    assert len(read_rollbacks(folder.faults, 9)) == times
    assert all(value.isfinite().all() for value in read_weights(folder.path).state.values())


def test_spikes_are_named_with_the_keys_of_their_batch(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(guard, "FEWEST", 4)
    spoil(monkeypatch, lambda step, _: step == 4, 1e6)
    with caplog.at_level(logging.WARNING):
        folder = train(toy(tmp_path))
    (row,) = map(json.loads, (folder.faults / "spikes_rank_0.jsonl").read_text().splitlines())
    assert row["step"] == 5
    assert row["score"] > 10
    assert len(row["keys"]) == 4
    assert "loss spike at step 5" in caplog.text
