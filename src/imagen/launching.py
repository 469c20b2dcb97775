"""The processes of a training as they begin: all with the same config and from the same state, or none."""

import hashlib
import json
import os
import shlex
from typing import Any

import lightning
import torch.distributed
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from imagen.errors import UserError


class SameConfig(lightning.Callback):
    """Before anything else that processes do together, holds their resolved configs against one another.

    And where they go on from, said in words.
    """

    def __init__(self, config: dict[str, Any], goes_on_from: str) -> None:
        self._config = config
        self._goes_on_from = goes_on_from

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Raises: UserError, in every process, naming what differs."""
        if trainer.world_size > 1:
            check_same(self._config)
            check_same_state(self._goes_on_from)


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


def check_same_state(goes_on_from: str) -> None:
    """All processes call it at once. Raises: UserError, in every process, naming two states that differ."""
    states = _gathered(goes_on_from)
    other = next((rank for rank, state in enumerate(states) if state != states[0]), None)
    if other is not None:
        raise UserError(
            f"the processes of this training go on from different states, rank 0 from {states[0]} and rank {other} "
            f"from {states[other]}: give all of them one output_dir on a disk that they share, and the same checkpoints"
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


def check_started(trainer: lightning.Trainer) -> None:
    """Raises: UserError if torchrun has started other processes than the config trains on.

    With fewer devices in the config each of them would train the whole run by itself.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    machines = int(os.environ["WORLD_SIZE"]) // local
    if (trainer.num_devices, trainer.num_nodes) != (local, machines):
        strategy = "" if trainer.world_size > 1 else "trainer=ddp "
        raise UserError(
            f"torchrun has started {local} processes on {machines} machines, but the config trains on "
            f"{trainer.num_devices} devices of {trainer.num_nodes}: set {strategy}trainer.devices={local} "
            f"trainer.num_nodes={machines}"
        )


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
