import json
from collections.abc import Callable

import lightning
import pytest
import torch
from torch import nn

from imagen import build
from imagen.cli import compose
from imagen.errors import UserError
from imagen.lightning_module import DiffusionModule
from imagen.micro_batch import FindMicroBatch, Trial, accumulate, accumulation, largest, make_state
from imagen.runs import RunFolder
from imagen.strategy import FSDP2
from imagen.trainer import _example_batch, build_trainer
from imagen.training import train
from imagen.types import Batch

TOY = ["experiment=toy", "callback=[]", "data.num_workers=0"]


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "count"),
    [(2048, None, 8, 1), (2048, 256, 8, 1), (2048, 64, 8, 4), (2048, 100, 8, 3), (10, 4, 3, 1), (7, 1, 2, 4)],
)
def test_accumulation_is_the_least_that_leaves_no_micro_batch_too_large(batch, micro, processes, count):
    assert accumulation(batch, micro, processes) == count
    parts = count * processes
    rows = [(part + 1) * batch // parts - part * batch // parts for part in range(parts)]  # as the loader deals them
    assert sum(rows) == batch
    assert max(rows) <= (micro or batch)


def test_a_batch_of_fewer_pictures_than_processes_is_refused():
    with pytest.raises(UserError, match="batch_size=4 is the global batch and must be at least 1 picture for each of"):
        accumulation(4, None, 8)


def test_validation_stays_where_it_was_in_steps():
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, val_check_interval=50)
    for count in (4, 3):
        accumulate(trainer, count)
        assert (trainer.accumulate_grad_batches, trainer.val_check_interval) == (count, 50 * count)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5, 8, 13, 16, 17, 100])
@pytest.mark.parametrize("most", [1, 6, 16, 64])
def test_the_largest_is_found_with_few_trials(limit, most):
    tried = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= limit

    assert largest(fits, most) == min(limit, most)
    assert max(tried) <= max(2 * limit, 1)
    assert len(tried) <= 2 * most.bit_length() + 1


def test_an_optimizers_state_is_made_without_changing_a_weight():
    layer = nn.Linear(3, 2)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    for kind in (torch.optim.AdamW, torch.optim.Adafactor):
        optimizer = kind(layer.parameters(), lr=0.1, weight_decay=0.5)
        make_state(optimizer)
        assert len(optimizer.state) == 2
        assert optimizer.param_groups[0]["lr"] == 0.1
        assert all(torch.equal(one, two) for one, two in zip(layer.parameters(), before, strict=True))


def trainer_and_module(*overrides: str) -> tuple[lightning.Trainer, DiffusionModule, Callable[[int], Batch]]:
    """A trainer with its optimizers, as it is when training begins, the module, and how made-up batches are made."""
    cfg = compose("train", [*TOY, *overrides])
    module = build.build_module(cfg)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.optimizers = [module.configure_optimizers()["optimizer"]]
    return trainer, module, lambda count: _example_batch(cfg, count)


def test_trials_find_the_limit_and_leave_weights_gradients_and_optimizer_as_they_were(monkeypatch, capsys):
    trainer, module, make = trainer_and_module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = trainer.strategy.optimizers[0]
    plain, states = module.loss.forward, []

    def limited(denoiser, batch, *rest, **named):
        states.append(len(optimizer.state))
        if len(batch) > 5:
            raise torch.OutOfMemoryError
        return plain(denoiser, batch, *rest, **named)

    monkeypatch.setattr(module.loss, "forward", limited)
    FindMicroBatch(12, make).find(trainer, module)
    assert trainer.accumulate_grad_batches == 3  # of 4 pictures, since 5 would fit
    assert "micro_batch_size=5" in capsys.readouterr().out
    assert min(states) > 0, "the optimizer's state takes its memory while it is tried"
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_not_even_one_picture_says_what_to_do(monkeypatch):
    trainer, module, make = trainer_and_module()
    monkeypatch.setattr(Trial, "__call__", lambda self, count: False)
    with pytest.raises(UserError, match="recompute=selective"):
        FindMicroBatch(8, make).find(trainer, module)


def test_a_training_that_cannot_be_measured_is_refused(monkeypatch):
    trainer, module, make = trainer_and_module()
    with pytest.raises(UserError, match="this training has none: set micro_batch_size"):
        FindMicroBatch(8, make).on_fit_start(trainer, module)
    sharded = FSDP2(sharded_checkpoints=False, reduce_every_micro_batch=True, timeout_minutes=1)
    monkeypatch.setattr(FSDP2, "root_device", torch.device("cuda"))
    monkeypatch.setattr(lightning.Trainer, "strategy", sharded)
    with pytest.raises(UserError, match="does not go with trainer=fsdp2"):
        FindMicroBatch(8, make).on_fit_start(trainer, module)


@pytest.mark.parametrize("override", ["+trainer.accumulate_grad_batches=2", "find_batch_size=true micro_batch_size=2"])
def test_two_keys_that_say_the_same_are_refused(override):
    with pytest.raises(UserError, match="micro_batch_size"):
        build.build_module(compose("train", [*TOY, *override.split()]))


def test_a_trainer_accumulates_as_the_micro_batch_asks(tmp_path):
    cfg = compose("train", [*TOY, "batch_size=8", "micro_batch_size=3", "trainer.accelerator=cpu", "logger=[]"])
    log = lightning.pytorch.loggers.CSVLogger(str(tmp_path))
    trainer = build_trainer(cfg, RunFolder(tmp_path), log)
    assert trainer.accumulate_grad_batches == 3
    assert trainer.val_check_interval == 3 * cfg.validate_every_n_steps


def test_a_run_goes_on_with_other_micro_batches_where_it_stood(tmp_path):
    def run(name: str, *more: str) -> RunFolder:
        own = [
            "callback=[checkpoint]",
            "callback.checkpoint.every_n_steps=2",
            "max_steps=4",
            f"output_dir={tmp_path}/{name}",
        ]
        own += ["batch_size=6", "validate_every_n_steps=2", "trainer.log_every_n_steps=1", "optimizer.eps=1.0e-3"]
        return train(compose("train", ["experiment=toy", "data.num_workers=0", *own, *more]))

    def rows(folder: RunFolder) -> list[tuple[int, str, float]]:
        read = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        return [(row["step"], row["name"], pytest.approx(row["value"], abs=1e-5)) for row in read]

    whole = run("whole", "micro_batch_size=2")  # three a step
    first = whole.all_checkpoints()[0]
    assert first.name.endswith("2.ckpt")
    on = run("on", "micro_batch_size=3", f"resume={first}")  # two a step
    after = [(row["step"], row["name"], row["value"]) for row in map(json.loads, on.metrics.read_text().splitlines())]
    assert after == [row for row in rows(whole) if row[0] > 2]
