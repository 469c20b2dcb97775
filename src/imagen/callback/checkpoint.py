"""Checkpoints: every so many steps, at the end, and when the run is asked to stop."""

import signal
from types import FrameType
from typing import Any

import lightning

from imagen.ranges import Count
from imagen.runs import RunFolder, checkpoint_name


class Checkpoint(lightning.Callback):
    """Writes ``checkpoints/step_<n>.ckpt`` every ``every_n_steps`` and keeps the newest ``keep`` of them.

    Ctrl-C and SIGTERM let the step in hand finish, write a checkpoint and end the fit; ``stopped_by`` then holds the
    signal's number. A second Ctrl-C stops at once. Under several processes all stop after the same step.
    """

    def __init__(self, *, every_n_steps: Count, keep: Count) -> None:
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.stopped_by: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._ask_to_stop)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():  # between two halves of one step there is nothing whole to save
            return
        stop = trainer.strategy.reduce_boolean_decision(self.stopped_by is not None, all=False)
        step = trainer.global_step
        if stop or step % self.every_n_steps == 0 or step == trainer.max_steps:
            trainer.save_checkpoint(RunFolder.of_trainer(trainer).checkpoints / checkpoint_name(step))
            self._prune(trainer)
        if stop:
            trainer.should_stop = True
            if (batch_idx + 1) % (trainer.val_check_batch or 1):
                trainer.limit_val_batches = 0  # else Lightning validates before it lets go, due or not

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._give_back_signals()

    def on_exception(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        self._give_back_signals()

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped_by = number

    def _give_back_signals(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _prune(self, trainer: lightning.Trainer) -> None:
        if trainer.is_global_zero:
            for path in RunFolder.of_trainer(trainer).all_checkpoints()[: -self.keep]:
                path.unlink()
