"""One stage's training from config to ``done.json``: what ``train.py`` calls."""

import os
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from imagen import build
from imagen.callback import Checkpoint
from imagen.errors import UserError
from imagen.lightning_module import DiffusionModule
from imagen.metrics_log import MetricsLog
from imagen.null_text import fill_null_text
from imagen.runs import RunFolder, Weights, checkpoint_name, read_checkpoint

EXPECTED_WARNINGS = (
    "does not have many workers",  # how many serve is the config's choice
    "in eval mode at the start of training",  # the averaged network
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's own
)

STATEFUL = {
    *("resolution", "low_resolution", "text_encoder", "null_text", "text_pooling", "network"),
    *("parameterization", "weighting", "optimizer", "ema"),
}
"""What a checkpoint is a state of: these must not change where training goes on from it; all else may."""


def train(cfg: DictConfig) -> RunFolder:
    """Train, resuming where the run folder stopped; write the averaged weights and, last, ``done.json``.

    A finished run is left as it is. ``SystemExit`` with 128 + the signal's number if the run was asked to stop.
    """
    config = build.run_config(cfg)
    folder = RunFolder.of(config)
    if folder.done.is_file():
        print(f"{folder.path} is finished; delete it, or change the config or the seed, to train again")
        return folder
    with folder.held() if _is_first_process() else nullcontext():
        _train(cfg, config, folder)
    return folder


def _train(cfg: DictConfig, config: dict[str, Any], folder: RunFolder) -> None:
    past = _resume_from(cfg, config, folder)
    data, module = build.build_data(cfg), build.build_module(cfg)
    data.setup("fit")  # what is wrong with the data shows before anything is written
    if past.checkpoint is None and _is_first_process():  # it shares with the others; a checkpoint holds what was filled
        fill_null_text(module, build.build_encoder(cfg).encode)
    folder.start(config)
    _forget_after(folder, past)
    module.clock.start(past.seconds)
    every = cfg.trainer.log_every_n_steps
    log = MetricsLog(folder.metrics, global_batch=cfg.batch_size, log_every_n_steps=every, resumed_step=past.step)
    trainer = build.build_trainer(cfg, folder, log)
    _begin_wandb(trainer)
    if cfg.compile:
        module.denoiser.network.compile(fullgraph=True)
    print(f"training {cfg.name} in {folder.path}" + (f" from step {past.step}" if past.step else ""))
    status = 1
    try:
        _fit(trainer, module, data, past.checkpoint)
        status = 0
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=status)
    if trainer.global_step < cfg.max_steps:
        print(f"stopped at step {trainer.global_step}; the same command goes on from there")
        raise SystemExit(128 + _stopped_by(trainer))
    if trainer.is_global_zero:
        _finish(folder, module, trainer.global_step)


def _begin_wandb(trainer: lightning.Trainer) -> None:
    """Raises: UserError, before the first step, where W&B asks for an account that is not there."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            from wandb.errors import UsageError  # here, since nobody else waits for wandb

            try:
                _ = logger.experiment
            except UsageError as error:
                raise UserError(
                    f"logger=wandb cannot begin ({error}); set WANDB_MODE=offline to write to disk without an account, "
                    "or leave it out with logger=[]"
                ) from error


def _is_first_process() -> bool:
    """Whether no other process of this training could hold the run's folder; known before there is a trainer."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    rank: int = getattr(rank_zero_only, "rank")  # noqa: B009 - set from outside, unknown to type checkers
    return rank == 0 and node == "0"


@dataclass(frozen=True)
class Past:
    """Where a run goes on from: nothing, or a checkpoint, its step and the seconds trained until then."""

    checkpoint: Path | None = None
    step: int = 0
    seconds: float = 0.0


def _stopped_by(trainer: lightning.Trainer) -> int:
    """The number of the signal that asked to stop; 0 if something else did, Lightning's ``max_time`` for instance."""
    callbacks: list[object] = getattr(trainer, "callbacks")  # noqa: B009 - set by a connector, unknown to type checkers
    return next((callback.stopped_by or 0 for callback in callbacks if isinstance(callback, Checkpoint)), 0)


def _fit(
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    data: lightning.LightningDataModule,
    checkpoint: Path | None,
) -> None:
    torch.set_float32_matmul_precision("high")
    with warnings.catch_warnings():
        for expected in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=f".*{expected}")
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)


def _resume_from(cfg: DictConfig, config: dict[str, Any], folder: RunFolder) -> Past:
    existing = folder.all_checkpoints()
    if cfg.resume == "never":
        if existing:
            raise UserError(f"resume=never but {folder.path} holds checkpoints; delete it or choose another seed")
        return Past()
    if cfg.resume != "auto" and not Path(cfg.resume).is_file():
        raise UserError(f"resume={cfg.resume} is neither 'auto', 'never' nor a checkpoint that exists")
    if cfg.resume == "auto" or (existing and Path(cfg.resume).parent.resolve() != folder.checkpoints.resolve()):
        # what a run began with elsewhere is past once it has checkpoints of its own
        path, remedy = existing[-1] if existing else None, "delete it, and the same command goes on from the one before"
    else:
        path, remedy = Path(cfg.resume), "give another"
    return Past() if path is None else _past(path, remedy, config)


def _past(path: Path, remedy: str, config: dict[str, Any]) -> Past:
    checkpoint = read_checkpoint(path, remedy)
    kept, step = checkpoint["imagen"], int(checkpoint["global_step"])
    if differing := _differences(kept["config"], config):
        raise UserError(f"resume={path} does not fit this config: {', '.join(differing)}")
    if config["max_steps"] < step:
        raise UserError(f"resume={path} is at step {step} already, past max_steps={config['max_steps']}: give more")
    return Past(path, step, float(kept["seconds"]))


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """What a checkpoint's weights and optimizer state were made for, where the config in hand says otherwise.

    Keys that only one of the two has are of another version of the project, and pass.
    """
    found: list[str] = []
    for key in sorted(there.keys() & here.keys() if prefix else there.keys() & here.keys() & STATEFUL):
        old, new, name = there[key], here[key], f"{prefix}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            old_class, new_class = (str(node.get("_target_")).rpartition(".")[2] for node in (old, new))
            if old_class == new_class:
                found += _differences(old, new, f"{name}.")
            else:  # the keys of another option are beside the point
                found.append(f"{name} {old_class} there, {new_class} here")
        elif old != new and name != "text_encoder.path":  # where a thing lies is not what it is
            found.append(f"{name} {old} there, {new} here")
    return found


def _forget_after(folder: RunFolder, past: Past) -> None:
    """Remove checkpoints and snapshots later than the one gone on from: they are of a run that is given up."""
    for path in folder.all_checkpoints() + folder.all_snapshots():
        if path.name >= checkpoint_name(past.step + 1).removesuffix(".ckpt"):  # a snapshot's name begins like it
            path.unlink(missing_ok=True)


def _finish(folder: RunFolder, module: DiffusionModule, step: int) -> None:
    provenance = module.provenance()
    seconds = provenance["seconds"]
    Weights(module.state_to_export(), provenance["config"], provenance["text_fingerprint"], step).save(folder.weights)
    folder.finish({"step": step, "seconds": round(seconds, 1), "seconds_per_step": round(seconds / step, 4)})
    print(f"finished {folder.path} at step {step} after {seconds:.0f} s")
