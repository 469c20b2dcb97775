"""Validation loss per log-SNR bin: where along the noise a run is good or bad."""

from itertools import pairwise
from typing import Any

import lightning
import torch
from torchmetrics import MeanMetric

from imagen.loss import Loss


class LossByLogSNR(lightning.Callback):
    """Logs ``val/loss_logsnr_<low>_to_<high>`` for the bins between ``edges`` (log-SNR, increasing).

    The outer bins take in what lies beyond the edges; an empty bin logs nothing.
    """

    def __init__(self, *, edges: list[float]) -> None:
        if sorted(set(edges)) != edges or len(edges) < 2:
            raise ValueError(f"edges={edges} must be at least two increasing log-SNR values")
        self.edges = edges
        self._bins: list[MeanMetric] = []

    def on_validation_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._bins = [MeanMetric().to(pl_module.device) for _ in self.edges[1:]]

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Loss, *args: Any, **kwargs: Any
    ) -> None:
        inner = torch.tensor(self.edges[1:-1], device=outputs.logsnr.device)
        index = torch.bucketize(outputs.logsnr, inner)
        for i, metric in enumerate(self._bins):
            chosen = outputs.per_example[index == i]
            if len(chosen):
                metric.update(chosen)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for (low, high), metric in zip(pairwise(self.edges), self._bins, strict=True):
            if metric.update_called:
                pl_module.log(f"val/loss_logsnr_{low:g}_to_{high:g}", metric.compute())
