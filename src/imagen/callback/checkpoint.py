"""Checkpoints: every so many steps and minutes, at the end, and when the run is asked to stop."""

import logging
import os
import signal
import subprocess
import time
from types import FrameType
from typing import Any

import lightning
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from imagen.agreement import Agreement
from imagen.background import CheckpointWriter
from imagen.checkpoints import checkpoint_name, remove_checkpoint
from imagen.random_state import RandomState, random_states, restore_random_state
from imagen.ranges import Count, Natural
from imagen.runs import RunFolder

log = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What asks a run to stop: Ctrl-C, a scheduler's end, and SLURM's announcement of it (``#SBATCH --signal=USR1@90``)."""


class Checkpoint(lightning.Callback):
    """Writes ``checkpoints/step_<n>.ckpt`` and keeps the newest ``keep``; ``background`` as in ``imagen.background``.

    One is due after ``every_n_steps``, and ``every_n_minutes`` after the last (0: by steps alone). Ctrl-C, SIGTERM and
    SIGUSR1 let the step in hand finish, write a checkpoint and end the fit; ``stopped_by`` then holds the signal's
    number. A second Ctrl-C stops at once. Under several processes all stop after the same step, whichever was told.
    One is also due where a callback that stands before this one has ended the fit, as ``trainer.max_time`` does.
    Under SLURM, SIGUSR1 also puts the job back into the queue, as Lightning's own handler does.
    """

    def __init__(self, *, every_n_steps: Count, every_n_minutes: Natural, keep: Count, background: bool) -> None:
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.keep = keep
        self.background = background
        self.stopped_by: int | None = None
        self._asked: int | None = None
        self._agreement = Agreement()
        self._random_states: list[RandomState] = []
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._writer = CheckpointWriter(lambda: self._prune(trainer), background=self.background)
        trainer.strategy.checkpoint_io = self._writer

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["random_states"] = random_states()

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._random_states = checkpoint.get("random_states", [])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if len(self._random_states) == trainer.world_size:  # of as many processes as there are now
            restore_random_state(self._random_states[trainer.global_rank])
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._ask_to_stop)
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():  # between two halves of one step there is nothing whole to save
            return
        self._writer.check()
        asked, late = self._agreement.largest(trainer, [self._asked or 0, self._is_late(trainer)])
        step = trainer.global_step
        if asked or late or trainer.should_stop or step % self.every_n_steps == 0 or step == trainer.max_steps:
            path = RunFolder.of_trainer(trainer).checkpoints / checkpoint_name(step)
            trainer.save_checkpoint(path)
            if path.is_dir():  # all processes wrote it, and none of them in the background
                self._prune(trainer)
            self._last = time.monotonic()
        if asked:
            self.stopped_by = asked
            stop_here(trainer, batch_idx)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._writer.wait()
        self._give_back_signals()
        if trainer.is_global_zero and self._requeues(trainer):
            requeue()

    def on_exception(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        self._give_back_signals()

    def _requeues(self, trainer: lightning.Trainer) -> bool:
        """Whether the signal that stopped the run is the one by which SLURM announces the end of a job's time."""
        environment = trainer._accelerator_connector.cluster_environment
        if not isinstance(environment, SLURMEnvironment):
            return False
        return environment.auto_requeue and self.stopped_by == environment.requeue_signal

    def _is_late(self, trainer: lightning.Trainer) -> bool:
        """Whether a checkpoint is due by the first process's clock, said once for each."""
        if not (self.every_n_minutes and trainer.is_global_zero):
            return False
        late = time.monotonic() - self._last >= 60 * self.every_n_minutes
        if late:
            self._last = time.monotonic()
        return late

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = number

    def _give_back_signals(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _prune(self, trainer: lightning.Trainer) -> None:
        """When the newest is whole, and not before."""
        if trainer.is_global_zero:
            for path in RunFolder.of_trainer(trainer).all_checkpoints()[: -self.keep]:
                remove_checkpoint(path)


def stop_here(trainer: lightning.Trainer, batch_idx: int) -> None:
    """End the fit after this batch, without a validation that is not due."""
    trainer.should_stop = True
    if (batch_idx + 1) % (trainer.val_check_batch or 1):
        trainer.limit_val_batches = 0  # else Lightning validates before it lets go, due or not


def requeue() -> None:
    """Ask SLURM to run this job again; the next sitting goes on from the checkpoint."""
    job, array = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else job
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True)
    except OSError as error:
        log.warning("SLURM job %s is not back in the queue (%s): submit it again", name, error)
        return
    if done.returncode:
        log.warning("SLURM job %s is not back in the queue (%s): submit it again", name, done.stderr.strip())
