"""``trainer.max_time``: how long a run may train, over all its sittings."""

from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer

from imagen.agreement import Agreement
from imagen.callback.checkpoint import stop_here
from imagen.errors import UserError


class Deadline(Timer):
    """Lightning's, but that it ends the fit between two steps, not two micro-batches, and no process waits for another.

    It stands before the checkpoint callback, which writes what there is when the time is over. ``limit`` is
    ``DD:HH:MM:SS`` or a mapping with what ``datetime.timedelta`` takes.

    Raises: UserError if it is neither.
    """

    def __init__(self, limit: Any) -> None:
        try:
            super().__init__(limit, interval="step")
        except (MisconfigurationException, TypeError) as error:
            raise UserError(f"trainer.max_time={limit} is no length of time: write DD:HH:MM:SS") from error
        self._agreement = Agreement()

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        over = trainer.is_global_zero and (self.time_remaining() or 0.0) <= 0
        if any(self._agreement.largest(trainer, [int(over)])):
            stop_here(trainer, trainer.fit_loop.epoch_loop.batch_idx)
