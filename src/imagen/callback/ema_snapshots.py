"""Snapshots of the averaged networks, from which averages of other lengths are made after training."""

from typing import Any

import lightning
import torch
from torch import Tensor, nn

from imagen.ema import PowerEMA
from imagen.errors import UserError
from imagen.lightning_module import DiffusionModule
from imagen.ranges import Count
from imagen.runs import RunFolder, Weights, snapshot_name
from imagen.sharded import whole_state

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class EMASnapshots(lightning.Callback):
    """Writes ``snapshots/step_<n>_<sigma_rel>.safetensors`` for each length, every ``every_n_steps`` and at the end.

    Its parameters are of ``dtype``. It stands for itself: a stage for ``sample.py``, with its step and length.
    """

    def __init__(self, *, every_n_steps: Count, dtype: str) -> None:
        """Raises: UserError if ``dtype`` is neither float32 nor bfloat16."""
        if dtype not in DTYPES:
            raise UserError(f"dtype={dtype} of ema_snapshots must be one of {', '.join(DTYPES)}")
        self.every_n_steps = every_n_steps
        self.dtype = DTYPES[dtype]

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Raises: UserError if the run keeps another average than the power function's."""
        assert isinstance(pl_module, DiffusionModule)
        if not isinstance(pl_module.ema, PowerEMA):
            raise UserError(
                f"callback ema_snapshots does not go with {type(pl_module.ema).__name__}, of which no other length can "
                "be made: set ema=power, or leave ema_snapshots out of callback"
            )

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or step == trainer.max_steps
        if due and not trainer.fit_loop._should_accumulate():
            assert isinstance(pl_module, DiffusionModule)
            assert isinstance(pl_module.ema, PowerEMA)
            known = pl_module.provenance()
            for sigma_rel, network in pl_module.ema.tracks():
                state = self._state(network, trainer.is_global_zero)
                if state:
                    weights = Weights(state, known["config"], known["text_fingerprint"], step, sigma_rel)
                    weights.save(RunFolder.of_trainer(trainer).snapshots / snapshot_name(step, sigma_rel))

    def _state(self, network: nn.Module, keep: bool) -> dict[str, Tensor]:
        """All processes call it at once; it is empty where it is not to be kept."""
        averaged = {name for name, _ in network.named_parameters()}  # buffers are the same in all, and stay exact
        state = whole_state(network.state_dict(), keep)
        return {name: value.to(self.dtype) if name in averaged else value for name, value in state.items()}
