"""The processes that train and measure a point together: what the first of them finds, all do."""

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import lightning
import torch.distributed
from omegaconf import DictConfig

from imagen.errors import GoneError
from imagen.launching import start_processes
from imagen.metrics_log import MetricsLog
from imagen.runs import RunFolder
from imagen.trainer import build_trainer

Found = TypeVar("Found")

PATIENCE = timedelta(days=30)
"""How long they wait for one of them that measures, or waits for another worker: gloo tells at once if it is gone."""


@cache
def _group() -> Any:
    """One for all points of a sweep."""
    return torch.distributed.new_group(timeout=PATIENCE, backend="gloo")


class Processes:
    """Those that the config trains on, of which there may be one; they meet before they know what there is to do."""

    def __init__(self, trainer: lightning.Trainer) -> None:
        start_processes(trainer)
        self.index, self.count = trainer.global_rank, trainer.world_size
        self._device = trainer.strategy.root_device
        self._group = _group() if self.count > 1 else None

    @classmethod
    def of(cls, cfg: DictConfig, run: RunFolder) -> "Processes":
        """Raises: UserError where ``train`` could not start them."""
        log = MetricsLog(run.metrics, global_batch=cfg.batch_size, log_every_n_steps=cfg.trainer.log_every_n_steps)
        return cls(build_trainer(cfg, run, log))

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def share(self) -> list[str]:
        """Overrides of ``evaluate.py`` for this process's part of the work, on its own device."""
        if self.count == 1:
            return []
        return [f"worker_index={self.index}", f"worker_count={self.count}", f"device={self._device}"]

    def told_by_first(self, find: Callable[[], Found]) -> Found:
        """What the first finds, for all. All call it at once."""
        return self.gathered(find() if self.is_first else None)[0]

    def gathered(self, value: Any, patience: timedelta = PATIENCE) -> list[Any]:
        """What each of them has, the first first. All call it at once.

        Raises: GoneError if one is gone, or has not come for as long as ``patience``.
        """
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        try:
            torch.distributed.monitored_barrier(self._group, timeout=patience)
            torch.distributed.all_gather_object(found, value, group=self._group)
        except RuntimeError as error:
            raise GoneError(
                "another process of this sweep has ended, or never came as far as this one: see what they said; "
                "the same command goes on from there"
            ) from error
        return found
