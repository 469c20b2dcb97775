"""The processes of a training as they begin: all of them with the same config, or none."""

import hashlib
import json
import shlex
from typing import Any

import lightning
import torch.distributed
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from imagen.errors import UserError


class SameConfig(lightning.Callback):
    """Before anything else that processes do together, holds their resolved configs against one another."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Raises: UserError, in every process, naming the keys that differ."""
        if trainer.world_size > 1:
            check_same(self._config)


def check_same(config: dict[str, Any]) -> None:
    """All processes call it at once. Raises: UserError, in every process, naming the keys that differ."""
    own = flattened(config)
    digests = _gathered(hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest())
    if len(set(digests)) > 1:
        differing = differences(_gathered(own))
        raise UserError(
            f"the processes of this training were given different configs: {'; '.join(differing)}: start all of them "
            "with the same command"
        )


def flattened(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Every value of nested dicts by its full key, as JSON."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, sort_keys=True)
    return flat


def differences(configs: list[dict[str, str]]) -> list[str]:
    """The keys in which flattened configs, one a rank, are not all equal, each with two values that differ."""
    found = []
    for key in sorted({key for config in configs for key in config}):
        values = [config.get(key, "missing") for config in configs]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            found.append(f"{key} is {values[0]} on rank 0 and {values[other]} on rank {other}")
    return found


def _gathered(value: Any) -> list[Any]:
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def refuse_multirun(trainer: lightning.Trainer) -> None:
    """Raises: UserError if a multirun is about to start processes by itself, which would run the multirun each.

    Under a sampler of hyperparameters they would train one network, each with others.
    """
    if not (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN):
        return
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher) or trainer.world_size == 1:
        return
    if not launcher.cluster_environment.creates_processes_externally:
        processes = trainer.world_size // trainer.num_nodes
        point = shlex.join(HydraConfig.get().overrides.task)
        raise UserError(
            f"a multirun cannot start the {processes} processes of each of its trainings itself: on SLURM add "
            f"hydra/launcher=slurm; here run each point by itself, this one as "
            f"`torchrun --standalone --nproc-per-node={processes} train.py {point}`"
        )
