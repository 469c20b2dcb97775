"""The logger that every run has: one row per number in the run folder's ``metrics.jsonl``."""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from imagen.files import atomic_write, naming


class MetricsLog(Logger):
    """Appends ``{"step", "images", "name", "value"}`` rows; ``images`` is the number of pictures trained on so far.

    A run first drops the rows past its checkpoint, so that the file reads as if nothing had happened.
    ``log_every_n_steps`` is the trainer's: rows of training at other steps, where a run was stopped, are left out.
    """

    def __init__(self, path: Path, *, global_batch: int, log_every_n_steps: int) -> None:
        super().__init__()
        self.path = path
        self.global_batch = global_batch
        self.log_every_n_steps = log_every_n_steps

    @rank_zero_only
    def keep_until(self, step: int) -> None:
        """Drop the rows of later steps: they will be written again."""
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            # the last line may be half a row if the power went; json is not asked to read that one
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
            with atomic_write(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        return None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = (step or 0) + 1  # Lightning counts the step in hand; a row tells of the state after it
        due = self.log_every_n_steps and step % self.log_every_n_steps == 0
        rows = [
            {"step": step, "images": step * self.global_batch, "name": name, "value": float(value)}
            for name, value in metrics.items()
            if name != "epoch" and (due or not name.startswith("train/"))
        ]
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The config is in the run folder already."""
