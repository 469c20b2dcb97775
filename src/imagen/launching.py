"""The processes of a training as they begin: all with the same config and from the same state, or none."""

import atexit
import faulthandler
import hashlib
import json
import os
import shlex
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

import lightning
import torch.distributed
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from imagen.errors import UserError
from imagen.gloo import one_thread_a_group

Found = TypeVar("Found")


def is_first_process() -> bool:
    """Whether no other process of this training could hold the run's folder; known before there is a trainer."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    rank: int = getattr(rank_zero_only, "rank")  # noqa: B009 - set from outside, unknown to type checkers
    return rank == 0 and node == "0"


def are_several() -> bool:
    """Whether torchrun or srun has started this process as one of several; known before there is a trainer."""
    by_srun = SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1  # not in a shell within a job
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or by_srun


def start_processes(trainer: lightning.Trainer) -> None:
    """Have all processes of the training meet, as Lightning's fit would: what comes before it they can do together.

    Raises: UserError if the strategy would start them inside of the fit.
    """
    if trainer.world_size == 1:
        return
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)  # one that a signal ends says where: the others know only that it is gone
    launcher = trainer.strategy.launcher
    if launcher is not None and not isinstance(launcher, _SubprocessScriptLauncher):
        raise UserError("trainer.strategy starts its processes from within Python: take trainer=ddp or trainer=fsdp2")
    trainer.strategy.connect(lightning.LightningModule())  # which some ask for; the fit brings the true one
    setup = trainer.strategy.setup_environment
    with one_thread_a_group():
        setup() if launcher is None else launcher.launch(setup)
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    """Let go of the group before the interpreter ends: gloo's threads, still running then, would abort the process."""
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


def told_by_first(trainer: lightning.Trainer, find: Callable[[], Found]) -> Found:
    """What the first process finds or does, for all; the others wait for it. All call it at once.

    Raises: in the first process whatever ``find`` does; the others end with it, without a word, and wait for nothing.
    """
    found: Any = None
    error: Exception | None = None
    if trainer.is_global_zero:
        try:
            found = find()
        except Exception as raised:  # of any kind: who is not told waits until the timeout
            error = raised
    found, failed = trainer.strategy.broadcast((found, error is not None))
    if error is not None:
        raise error
    if failed:
        raise SystemExit(1)
    return found


def check_shared(trainer: lightning.Trainer, folder: Path, needed: Sequence[Path]) -> None:
    """All processes call it at once. Raises: UserError, in every process, if one lacks what the first has on its disk.

    That is a file in ``folder``, made for the purpose under a name that no file system can remember, and the
    ``needed`` ones.
    """
    if trainer.world_size == 1:
        return
    with ExitStack() as kept:
        made = folder / told_by_first(trainer, lambda: _made_in(folder, kept))
        unseen = _gathered([path for path in (made, *needed) if not path.exists()])
    machines = _gathered(socket.gethostname())
    for rank, paths in enumerate(unseen):
        if paths:
            raise UserError(
                f"rank {rank} on {machines[rank]} does not see all that rank 0 on {machines[0]} has in "
                f"{paths[0].parent}: give all processes one output_dir, and the same checkpoints, on a shared disk"
            )


def _made_in(folder: Path, kept: ExitStack) -> str:
    return Path(kept.enter_context(NamedTemporaryFile(prefix=".shared-", dir=folder)).name).name


def check_same(trainer: lightning.Trainer, config: dict[str, Any]) -> None:
    """All processes call it at once. Raises: UserError, in every process, naming the keys that differ."""
    if trainer.world_size == 1:
        return
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
