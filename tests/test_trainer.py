"""The Trainer that a config makes: its callbacks, loggers and batch."""

from pathlib import Path

import torch
from lightning.pytorch.loggers import TensorBoardLogger

from imagen.callback import Checkpoint, SampleGrid
from imagen.cli import compose
from imagen.deadline import Deadline
from imagen.metrics_log import MetricsLog
from imagen.micro_batch import FindMicroBatch
from imagen.runs import RunFolder
from imagen.trainer import _example_batch, build_trainer


def built(folder: Path, *overrides: str):
    cfg = compose("train", ["experiment=toy", *overrides])
    return build_trainer(cfg, RunFolder(folder), MetricsLog(folder / "m.jsonl", global_batch=1, log_every_n_steps=1))


def test_options_that_are_not_picked_make_nothing(tmp_path):
    trainer = built(tmp_path, "callback=[checkpoint]", "callback.sample_grid.every_n_steps=3")
    kinds = {type(callback) for callback in trainer.callbacks}
    assert Checkpoint in kinds
    assert not kinds & {SampleGrid, Deadline, FindMicroBatch}
    assert [type(one) for one in trainer.loggers] == [MetricsLog]
    assert trainer.default_root_dir == str(tmp_path)


def test_what_is_asked_for_is_there(tmp_path):
    trainer = built(tmp_path, "logger=[tensorboard]", "+trainer.max_time=00:01:00:00", "find_batch_size=true")
    kinds = [type(callback) for callback in trainer.callbacks]
    assert kinds.index(Deadline) < kinds.index(Checkpoint), "a checkpoint heeds it"
    assert FindMicroBatch in kinds
    assert [type(one) for one in trainer.loggers] == [MetricsLog, TensorBoardLogger]


def test_a_step_is_made_of_as_many_micro_batches_as_the_batch_needs(tmp_path):
    assert built(tmp_path, "batch_size=8", "micro_batch_size=3").accumulate_grad_batches == 3


def test_the_example_batch_is_as_large_as_training_has_it():
    cfg = compose("train", ["experiment=toy"])
    batch = _example_batch(cfg, 3)
    assert batch.image.shape == (3, 3, cfg.resolution, cfg.resolution)
    assert batch.image.dtype == torch.uint8
    assert batch.text.tokens.shape == (3, cfg.text_encoder.max_length, cfg.text_encoder.width)
    assert batch.text.mask.all()
