"""One stage's training from config to ``done.json``: what ``train.py`` calls."""

import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig
from torch import nn

from imagen import build
from imagen.build_check import check
from imagen.callback import Checkpoint, Guard
from imagen.checkpoints import remove_partial
from imagen.devices import machine_name
from imagen.errors import GoneError, UserError, first_line
from imagen.faults import Rollback, read_rollbacks, training_seed
from imagen.launching import check_same, check_shared, is_first_process, start_processes, told_by_first
from imagen.lightning_module import DiffusionModule
from imagen.metrics_log import MetricsLog
from imagen.null_text import fill_null_text
from imagen.resume import Past, forget_snapshots, go_back, in_vain, past_of
from imagen.runs import RunFolder, Weights
from imagen.strategy import FSDP2
from imagen.trainer import build_trainer
from imagen.warm_start import take_weights

Kind = TypeVar("Kind")

EXPECTED_WARNINGS = (
    "does not have many workers",  # how many serve is the config's choice
    "in eval mode at the start of training",  # the averaged network
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's own
    "`broadcast_buffers` is deprecated",  # older versions of torch have no other word for it
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
    with folder.held() if is_first_process() else nullcontext():
        if is_first_process():
            remove_partial(folder.checkpoints)
        while not _train(cfg, config, folder):
            pass
    return folder


def _train(cfg: DictConfig, config: dict[str, Any], folder: RunFolder) -> bool:
    """One way from where the run stands to its end; False where it went back, and is to be tried again."""
    check(cfg)  # what is wrong with config or data is said here, before there are more processes or anything is written
    data = build.build_data(cfg)
    data.setup("fit")
    log = MetricsLog(folder.metrics, global_batch=cfg.batch_size, log_every_n_steps=cfg.trainer.log_every_n_steps)
    trainer = build_trainer(cfg, folder, log)
    with _naming_the_others(trainer):
        start_processes(trainer)
        check_same(trainer, config)
        past, rollbacks = told_by_first(trainer, lambda: _standing(config, folder))
        check_shared(trainer, folder.path, [past.checkpoint] if past.checkpoint else [])
    module = _module(cfg, config, past)
    module.training_seed = training_seed(cfg.seed, rollbacks)

    def begin() -> None:
        if past.checkpoint is None:  # it shares with the others; a checkpoint holds what was filled
            fill_null_text(module, build.build_encoder(cfg).encode)
        folder.start(config)
        forget_snapshots(folder, past.step)
        log.keep_until(past.step)
        _begin_wandb(trainer)

    with _naming_the_others(trainer):
        told_by_first(trainer, begin)
    module.clock.start(past.seconds)
    if cfg.compile:
        network, strategy = module.denoiser.network, trainer.strategy
        strategy.compile(network) if isinstance(strategy, FSDP2) else network.compile(fullgraph=True)
    print(f"training {cfg.name} in {folder.path}" + (f" from step {past.step}" if past.step else ""))
    status = 1
    try:
        _fit(trainer, module, data, past.checkpoint)
        status = 0
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=status)
    guard, checkpoint = _callback(trainer, Guard), _callback(trainer, Checkpoint)
    number = checkpoint.stopped_by if checkpoint else None
    failed = False
    if guard is not None and guard.gave_up_at is not None:
        failed = True
        _go_back(trainer, folder, guard, rollbacks)
        if not number:
            return False
    if failed or trainer.global_step < cfg.max_steps:
        if number:
            then = f" by {signal.Signals(number).name}; the same command goes on from there"
        else:
            then = (
                f" of {cfg.max_steps} by trainer.max_time or a callback; with more of it the newest checkpoint goes on"
            )
        print(f"stopped at step {trainer.global_step}{then}")
        with _naming_the_others(trainer):
            trainer.strategy.barrier()  # whoever ends with a status has the others killed, as they write it may be
        raise SystemExit(128 + (number or 0))
    _finish(folder, module, trainer)
    return True


def _standing(config: dict[str, Any], folder: RunFolder) -> tuple[Past, list[Rollback]]:
    past = past_of(config, folder)
    return past, read_rollbacks(folder.faults, past.step)


def _module(cfg: DictConfig, config: dict[str, Any], past: Past) -> DiffusionModule:
    if cfg.init_from is None or past.checkpoint is not None:  # which holds weights of its own
        return build.build_module(cfg)

    def begin(network: nn.Module) -> None:
        said = take_weights(network, cfg.init_from, config)
        if is_first_process():
            print(said)

    return build.build_module(cfg, begin)


def _go_back(trainer: lightning.Trainer, folder: RunFolder, guard: Guard, behind: list[Rollback]) -> None:
    """Raises: UserError where the run is to stop, or has gone back as often as it may."""
    failed_at, last_good = guard.gave_up_at, guard.last_good
    assert failed_at is not None
    failed = f"{guard.max_in_a_row} steps in a row, the last of them {failed_at}, had no finite loss or gradient"
    tried = told_by_first(trainer, lambda: in_vain(folder, last_good, behind))  # the others may not see the last
    if guard.then == "stop" or tried >= guard.max_rollbacks:
        after = f" even after going back {tried} times" if tried else ""
        again = "go on from a checkpoint by resume=" if folder.all_checkpoints() else "begin again"
        raise UserError(
            f"{failed}{after}: look at their batches in {folder.faults}, and {again} with another setting, a lower "
            "optimizer.lr say"
        )
    back_to = told_by_first(trainer, lambda: go_back(folder, failed_at, last_good, behind)[-1].back_to)
    if trainer.is_global_zero:
        place = f"to the checkpoint of step {back_to}" if back_to else "to the beginning, since there is no checkpoint"
        print(f"{failed}: going back {place}, for time {tried + 1} of {guard.max_rollbacks}")


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


def _callback(trainer: lightning.Trainer, kind: type[Kind]) -> Kind | None:
    callbacks: list[object] = getattr(trainer, "callbacks")  # noqa: B009 - set by a connector, unknown to type checkers
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


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
        with _naming_the_others(trainer):
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)


@contextmanager
def _naming_the_others(trainer: lightning.Trainer) -> Iterator[None]:
    """Raises: GoneError in place of what torch says where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if trainer.world_size > 1 and any(name in str(error).lower() for name in ("gloo", "nccl")):
            reason = re.sub(r"^\[\S+\] |\. .*", "", first_line(error))
            raise GoneError(
                f"another process of this training has ended or no longer answers ({reason}): see what it said; "
                "the same command goes on from the newest checkpoint"
            ) from error
        raise


def _finish(folder: RunFolder, module: DiffusionModule, trainer: lightning.Trainer) -> None:
    state = module.state_to_export(keep=trainer.is_global_zero)
    if not trainer.is_global_zero:
        return
    provenance, step = module.provenance(), trainer.global_step
    seconds = provenance["seconds"]
    Weights(state, provenance["config"], provenance["text_fingerprint"], step).save(folder.weights)
    per_step = round(seconds / step, 4)
    machine = f"{machine_name(trainer.strategy.root_device)} x {trainer.world_size}"
    folder.finish({"step": step, "seconds": round(seconds, 1), "seconds_per_step": per_step, "machine": machine})
    print(f"finished {folder.path} at step {step} after {seconds:.0f} s")
