"""One stage's training from config to ``done.json``: what ``train.py`` calls."""

import time
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig

from imagen import build
from imagen.callback import Checkpoint
from imagen.errors import UserError
from imagen.lightning_module import DiffusionModule
from imagen.metrics_log import MetricsLog
from imagen.runs import RunFolder, Weights, read_checkpoint

EXPECTED_WARNINGS = (
    "does not have many workers",  # how many serve is the config's choice
    "in eval mode at the start of training",  # the averaged network
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's own
)


def train(cfg: DictConfig) -> RunFolder:
    """Train, resuming where the run folder stopped; write the averaged weights and, last, ``done.json``.

    A finished run is left as it is. ``SystemExit`` with 128 + the signal's number if the run was asked to stop.
    """
    config = build.run_config(cfg)
    folder = RunFolder.of(config)
    if folder.done.is_file():
        print(f"{folder.path} is finished; delete it, or change the config or the seed, to train again")
        return folder
    checkpoint, step = _resume_from(cfg, folder)
    data, module = build.build_data(cfg), build.build_module(cfg)
    data.setup("fit")  # what is wrong with the data shows before the run folder is made
    folder.start(config)
    log = MetricsLog(folder.metrics, global_batch=cfg.batch_size, resumed_step=step)
    trainer = build.build_trainer(cfg, folder, log)
    if cfg.compile:
        module.denoiser.network.compile(fullgraph=True)
    print(f"training {cfg.name} in {folder.path}" + (f" from step {step}" if step else ""))
    started = time.perf_counter()
    try:
        _fit(trainer, module, data, checkpoint)
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
    callbacks: list[object] = getattr(trainer, "callbacks")  # noqa: B009 - set by a connector, unknown to type checkers
    stopped_by = next((c.stopped_by for c in callbacks if isinstance(c, Checkpoint)), None)
    if stopped_by is not None and trainer.global_step < cfg.max_steps:
        print(f"stopped at step {trainer.global_step}; the same command goes on from there")
        raise SystemExit(128 + stopped_by)
    if trainer.is_global_zero:
        _finish(folder, module, trainer.global_step, trainer.global_step - step, time.perf_counter() - started)
    return folder


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


def _resume_from(cfg: DictConfig, folder: RunFolder) -> tuple[Path | None, int]:
    """The checkpoint to go on from and its step; (None, 0) to start anew."""
    existing = folder.all_checkpoints()
    if cfg.resume == "never":
        if existing:
            raise UserError(f"resume=never but {folder.path} holds checkpoints; delete it or choose another seed")
        return None, 0
    path = (existing[-1] if existing else None) if cfg.resume == "auto" else Path(cfg.resume)
    if path is None:
        return None, 0
    if not path.is_file():
        raise UserError(f"resume={cfg.resume} is neither 'auto', 'never' nor a checkpoint that exists")
    return path, int(read_checkpoint(path)["global_step"])


def _finish(folder: RunFolder, module: DiffusionModule, step: int, steps_here: int, seconds: float) -> None:
    weights = Weights(module.state_to_export(), **module.provenance(), step=step)
    weights.save(folder.weights)
    folder.finish(
        {"step": step, "seconds": round(seconds, 1), "seconds_per_step": round(seconds / max(1, steps_here), 4)}
    )
    print(f"finished {folder.path} at step {step}")
