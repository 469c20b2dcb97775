"""The progress bar of training: steps done of all, pictures a second, time left, the loss."""

from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from imagen.ranges import Count
from imagen.types import Batch


class Progress(ProgressBar):
    """One bar over ``max_steps``; Lightning's own cannot tell the time left of an endless stream.

    Every ``refresh_every_n_steps`` it shows the loss that was logged last, which is that of the whole global batch: to
    ask the other processes for another would make them wait.
    """

    def __init__(self, *, refresh_every_n_steps: Count) -> None:
        super().__init__()
        self.refresh_every_n_steps = refresh_every_n_steps
        self._enabled = True
        self._bar: tqdm | None = None

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit="step",
            desc="training",
            dynamic_ncols=True,
            mininterval=1.0,
            disable=not (self._enabled and trainer.is_global_zero),
        )

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        assert self._bar is not None
        step = trainer.global_step
        if step != self._bar.n and (step % self.refresh_every_n_steps == 0 or step == trainer.max_steps):
            rate = self._bar.format_dict["rate"] or 0.0
            global_batch = len(batch) * trainer.world_size * trainer.accumulate_grad_batches
            logged = trainer.callback_metrics.get("train/loss")
            loss = "" if logged is None else f"loss {logged.item():.4f}, "
            self._bar.set_postfix_str(f"{loss}{rate * global_batch:.1f} img/s", refresh=False)
        self._bar.update(step - self._bar.n)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
