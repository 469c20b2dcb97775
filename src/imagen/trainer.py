"""What trains a stage: Lightning's Trainer with the callbacks and loggers that a config picks."""

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig

from imagen.devices import check_precision
from imagen.instantiate import instantiate
from imagen.runs import RunFolder, plain
from imagen.types import Batch, TextEmbedding
from imagen.wandb_run import named

if TYPE_CHECKING:
    import lightning.pytorch.loggers


def build_trainer(cfg: DictConfig, folder: RunFolder, log: "lightning.pytorch.loggers.Logger") -> "lightning.Trainer":
    """Lightning's Trainer with the config's callbacks and loggers; its ``default_root_dir`` is the run's folder.

    Raises: UserError if the batch cannot be split among its processes, or a multirun would start these.
    """
    from imagen.deadline import Deadline
    from imagen.launching import check_started, refuse_multirun
    from imagen.micro_batch import FindMicroBatch, Recount, accumulate, accumulation

    finder = [FindMicroBatch(cfg.batch_size, partial(_example_batch, cfg))] if cfg.find_batch_size else []
    limit = plain(cfg.trainer).get("max_time")
    deadline = [] if limit is None else [Deadline(limit)]  # before the others: a checkpoint heeds it
    fixed = {
        "default_root_dir": str(folder.path),
        "callbacks": [Recount(), *finder, *deadline, *_picked(cfg, "callback")],
        "logger": [log, *_loggers(cfg, folder)],
        "enable_checkpointing": False,  # the checkpoint callback's work
        "enable_model_summary": False,
        "accumulate_grad_batches": 1,
    }
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # its greetings
    node = cfg.trainer.copy()
    if node.accelerator == "auto":  # Lightning's own choice may be one without the float64 that schedules need
        node.accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    check_precision(str(node.precision), node.accelerator)
    if isinstance(node.strategy, DictConfig):
        fixed["strategy"] = instantiate(node.strategy)
    trainer: lightning.Trainer = instantiate(node, **fixed)
    check_started(trainer)
    refuse_multirun(trainer)
    accumulate(trainer, accumulation(cfg.batch_size, cfg.micro_batch_size, trainer.world_size))
    return trainer


def _example_batch(cfg: DictConfig, count: int) -> Batch:
    """``count`` black pictures of the size that is trained on, with captions of the encoder's full length."""
    side, length = cfg.data.get("crop") or cfg.resolution, cfg.text_encoder.max_length
    text = TextEmbedding(
        torch.zeros(count, length, cfg.text_encoder.width), torch.ones(count, length, dtype=torch.bool)
    )
    pictures = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    return Batch(pictures, text, torch.zeros(count, dtype=torch.bool), [""] * count, [""] * count)


def _loggers(cfg: DictConfig, folder: RunFolder) -> "list[lightning.pytorch.loggers.Logger]":
    nodes = [node for node in cfg.get("logger", {}).values() if "_target_" in node]
    return [instantiate(named(node, cfg, folder) if "wandb" in node["_target_"].lower() else node) for node in nodes]


def _picked(cfg: DictConfig, choice: str) -> list[Any]:
    """The objects of a choice of many: an empty one leaves no key, settings of an option not picked make no object."""
    return [instantiate(node) for node in cfg.get(choice, {}).values() if "_target_" in node]
