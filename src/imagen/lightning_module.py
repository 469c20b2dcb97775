"""One stage's training: calls the loss, makes the optimizer, keeps the average, logs. No maths."""

import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from imagen.denoiser import Denoiser
from imagen.ema import EMA
from imagen.loss import DiffusionLoss
from imagen.null_text import check_null_text, share_null_text
from imagen.optimizer_settings import lay_out_state, renew_settings, settings_of
from imagen.randomness import TrainingAddress
from imagen.sharded import whole_state
from imagen.stage import Stage
from imagen.strategy import FSDP2
from imagen.types import Batch

VALIDATION_STEP = -1
"""Global validation batch i draws as step ``VALIDATION_STEP - i``: the same each time, and none of training's draws."""


class Clock:
    """Seconds trained, over all the sittings of a run."""

    def __init__(self) -> None:
        self.start(0.0)

    def start(self, before: float) -> None:
        """Go on from ``before`` seconds."""
        self._before, self._started = before, time.perf_counter()

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._started


class DiffusionModule(lightning.LightningModule):
    """Trains ``denoiser.network``; ``stage`` is how the averaged network will be sampled.

    ``config`` is the run's, plain and resolved; it travels in every checkpoint.
    ``seed`` and the trainer's step address every random draw, so that ranks, accumulation and resuming change none;
    ``training_seed`` is that of training's, another one where a run went back and is to fare otherwise.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        loss: DiffusionLoss,
        ema: EMA,
        stage: Stage,
        make_optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer],
        make_lr_scheduler: Callable[[Optimizer], LRScheduler],
        *,
        seed: int,
        channels_last: bool,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.loss = loss
        self.ema = ema
        self.make_optimizer = make_optimizer
        self.make_lr_scheduler = make_lr_scheduler
        self.seed = seed
        self.training_seed = seed
        self.stage = stage
        self.config = config
        self.clock = Clock()
        self._trained = torch.zeros(())
        self._validated = torch.zeros(2)
        if channels_last:
            self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def address(self, batch: Batch, step: int, seed: int) -> TrainingAddress:
        """The draws of a local batch: those of its rows of the global batch."""
        return TrainingAddress(seed, step, batch.place.first, len(batch), batch.place.total, self.device)

    def configure_model(self) -> None:
        """Divide what is trained and what is averaged among the processes, where the strategy does that."""
        if isinstance(self.trainer.strategy, FSDP2):
            self.trainer.strategy.shard_method(self.loss.weighting, "loss")
            for network in (self.denoiser.network, *self.ema.networks()):
                self.trainer.strategy.shard(network)

    def on_train_start(self) -> None:  # by now a checkpoint is loaded, whatever the strategy
        lay_out_state(self.trainer.optimizers[0])
        renew_settings(self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler, self._settings)
        share_null_text(self, self.trainer.strategy.broadcast)
        check_null_text(self)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        address = self.address(batch, self.trainer.global_step, self.training_seed)
        loss = self.loss(self.denoiser, batch, address, training=True)
        mean = loss.per_example.mean()
        self._log_trained(mean.detach() * (batch.place.count / batch.place.total), len(batch))
        # ranks and micro-batches are averaged as equals, however many rows each has
        return mean * batch.place.share(self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def _log_trained(self, part: Tensor, batch_size: int) -> None:
        """When it is due, log the mean over the step's global batch: all that ranks and micro-batches have of it."""
        self._trained = self._trained + part  # the zero to begin with stays on the host: to send it would wait
        if self.trainer.fit_loop._should_accumulate():
            return
        total, self._trained = self._trained, torch.zeros(())
        every: int = getattr(self.trainer, "log_every_n_steps")  # noqa: B009 - set by a connector, unknown to type checkers
        if every and (self.trainer.global_step + 1) % every == 0:
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
            self.log("train/loss", cast(Tensor, total), batch_size=batch_size)

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """The averaged network's loss, at noise and noise levels fixed for every rank and batch for the whole run."""
        step = VALIDATION_STEP - batch_idx // self.trainer.accumulate_grad_batches  # as in training, so many make one
        address = self.address(batch, step, self.seed)
        loss = self.loss(self.stage.denoiser, batch, address, training=False)
        count = batch.place.count  # 0: a stand-in for a rank without rows
        self._validated += torch.stack([loss.per_example.mean() * count, loss.per_example.new_tensor(float(count))])
        return loss

    def on_validation_epoch_start(self) -> None:
        self._validated = torch.zeros(2, device=self.device)  # sum of losses, count

    def on_validation_epoch_end(self) -> None:
        # Lightning's own mean over ranks divides whole numbers, and is wrong where theirs differ
        totals = self.trainer.strategy.reduce(self._validated, reduce_op="sum")
        assert isinstance(totals, Tensor)
        self.log("val/loss", totals[0] / totals[1])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.denoiser.network, self.trainer.global_step + 1)  # the trainer counts after this hook

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's, less its refusal of fused optimizers: they unscale nothing where there is no scaler."""
        plugin = self.trainer.precision_plugin
        if getattr(plugin, "scaler", None) is not None:
            return super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        return Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)

    def configure_optimizers(self) -> Any:
        """What the loss learns is a group of its own, without weight decay, which would pull it to where it began."""
        groups: list[dict[str, Any]] = [{"params": list(self.denoiser.network.parameters())}]
        if learned := list(self.loss.parameters()):
            groups.append({"params": learned, "weight_decay": 0.0})
        optimizer = self.make_optimizer(groups)
        scheduler = self.make_lr_scheduler(optimizer)
        self._settings = settings_of(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def provenance(self) -> dict[str, Any]:
        """The run's config, the fingerprint of the encoder of its text embeddings, and the seconds trained so far."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        return {
            "config": self.config,
            "text_fingerprint": datamodule.text_fingerprint,
            "seconds": self.clock.seconds(),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["imagen"] = self.provenance()

    def state_to_export(self, keep: bool = True) -> dict[str, Tensor]:
        """The averaged network's weights, contiguous and on the CPU: what ``weights.safetensors`` holds.

        All processes call it at once; it is empty where it is not to be kept.
        """
        return whole_state(self.ema.network.state_dict(), keep)
