"""A step without a finite loss or gradient changes nothing, and its batch is kept; many in a row end the fit."""

import logging
import math
from collections import deque
from typing import Any, Literal

import lightning
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from imagen.agreement import Later
from imagen.callback.checkpoint import stop_here
from imagen.faults import append_row, robust_score, save_batch
from imagen.lightning_module import DiffusionModule
from imagen.ranges import Count, Natural
from imagen.runs import RunFolder
from imagen.types import Batch

log = logging.getLogger(__name__)

FEWEST = 50
"""Of so many losses a median and a deviation are made, at least."""


class Guard(lightning.Callback):
    """Skips, on all ranks alike, a step whose loss or gradient is not finite, and saves its batch in ``RUN/faults``.

    Network and optimizer stay as they were; the step counts, so schedule, average and data go on. After
    ``max_in_a_row`` the fit ends, and ``gave_up_at`` is the step; ``train`` then does what ``then`` says: it goes back
    to the last good checkpoint, at most ``max_rollbacks`` times without getting beyond the row, or stops. At most
    ``max_saved`` batches are saved.

    A loss more than ``spike_score`` robust standard deviations above the median of the last ``spike_window`` goes to
    ``faults/spikes_rank_<r>.jsonl`` with the batch's keys.

    The gradient's norm is computed once more than clipping does, and read by the host a step later. A fused optimizer
    skips on the device; for any other the host waits for the norm.
    """

    def __init__(
        self,
        *,
        max_in_a_row: Count,
        then: Literal["rollback", "stop"],
        max_rollbacks: Natural,
        max_saved: Natural,
        spike_score: float,
        spike_window: Count,
    ) -> None:
        self.max_in_a_row = max_in_a_row
        self.then = then
        self.max_rollbacks = max_rollbacks
        self.max_saved = max_saved
        self.spike_score = spike_score
        self.gave_up_at: int | None = None
        self.last_good = 0
        self._in_a_row, self._saved = 0, 0
        self._window: deque[float] = deque(maxlen=spike_window)
        self._parts: list[Batch] = []  # of the step in hand
        self._losses: list[Tensor] = []
        self._numbers: Tensor | None = None
        self._last: tuple[int, list[Batch]] = (0, [])
        self._later = Later()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.last_good = trainer.global_step

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._parts.append(batch)

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        value = loss.detach()
        self._losses.append(value)
        # so that a loss that is not finite has such a gradient too, and with it every rank
        loss.register_hook(lambda gradient: gradient + (value - value))

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # in float16 such gradients are how the scale is found, and the scaler skips them itself
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self._numbers = torch.stack([norm, torch.stack(self._losses).sum()])
        sharded = any(isinstance(gradient, DTensor) for gradient in gradients)
        if not sharded and all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # torch's own name for it
        elif not norm.isfinite():
            for parameter in parameters:
                parameter.grad = None  # of which an optimizer takes no notice

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        self._judge(trainer, pl_module, self._later.swap(self._numbers))
        self._last = (trainer.global_step, self._parts)
        self._parts, self._losses, self._numbers = [], [], None
        if self.gave_up_at is not None:
            stop_here(trainer, batch_idx)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._judge(trainer, pl_module, self._later.swap(None))

    def _judge(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, numbers: list[float] | None
    ) -> None:
        """What became of the step before."""
        if numbers is None or self.gave_up_at is not None:
            return
        norm, loss = numbers
        step, parts = self._last
        if math.isfinite(norm):
            self._in_a_row, self.last_good = 0, step
            self._note_spike(trainer, step, loss, parts)
            return
        self._in_a_row += 1
        assert isinstance(pl_module, DiffusionModule)
        known = {"step": step, "drawn_at": step - 1, "seed": pl_module.training_seed, "rank": trainer.global_rank}
        kept = self._saved < self.max_saved
        if kept:
            self._saved += 1
            for i, part in enumerate(parts):
                name = f"step_{step:09d}_rank_{trainer.global_rank}_part_{i}"
                said = {**known, "loss": str(loss), "gradient_norm": str(norm)}
                save_batch(RunFolder.of_trainer(trainer).faults, name, part, said)
        log.warning(
            "step %s is skipped, %s in a row: its loss is %s, its gradient's norm %s; its batch is %s",
            *(step, self._in_a_row, loss, norm, "in faults" if kept else f"not saved, being past {self.max_saved}"),
        )
        if self._in_a_row >= self.max_in_a_row:
            self.gave_up_at = step

    def _note_spike(self, trainer: lightning.Trainer, step: int, loss: float, parts: list[Batch]) -> None:
        if len(self._window) >= FEWEST:
            score = robust_score(loss, list(self._window))
            if score > self.spike_score:
                rank, keys = trainer.global_rank, [key for part in parts for key in part.key]
                row = {"step": step, "rank": rank, "loss": loss, "score": round(score, 2), "keys": keys}
                append_row(RunFolder.of_trainer(trainer).faults / f"spikes_rank_{rank}.jsonl", row)
                log.warning("loss spike at step %s: %.4g, %.1f deviations above the median", step, loss, score)
        self._window.append(loss)
