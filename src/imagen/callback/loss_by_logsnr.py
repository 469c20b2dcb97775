"""Validation loss per log-SNR bin: where along the noise a run is good or bad."""

from itertools import pairwise
from typing import Any

import lightning
import torch

from imagen.loss import Loss
from imagen.types import Batch


class LossByLogSNR(lightning.Callback):
    """Logs ``val/loss_logsnr_<low>_to_<high>`` for the bins between ``edges`` (log-SNR, increasing).

    The outer bins take in what lies beyond the edges; an empty bin logs nothing.
    """

    def __init__(self, *, edges: list[float]) -> None:
        if sorted(set(edges)) != edges or len(edges) < 2:
            raise ValueError(f"edges={edges} must be at least two increasing log-SNR values")
        self.edges = edges
        self._totals = torch.empty(0)

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._totals = torch.zeros(len(self.edges) - 1, 2, device=pl_module.device)  # sum of losses, count

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Loss,
        batch: Batch,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if not batch.place.count:
            return
        inner = torch.tensor(self.edges[1:-1], device=outputs.logsnr.device)
        rows = torch.stack([outputs.per_example, torch.ones_like(outputs.per_example)], dim=1)
        self._totals.index_add_(0, torch.bucketize(outputs.logsnr, inner), rows)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        totals = trainer.strategy.reduce(self._totals, reduce_op="sum")  # on every rank, whatever bins it has met
        assert isinstance(totals, torch.Tensor)
        for (low, high), (loss, count) in zip(pairwise(self.edges), totals.tolist(), strict=True):
            if count:
                pl_module.log(f"val/loss_logsnr_{low:g}_to_{high:g}", loss / count)
