"""Checkpoints that processes write together, each its own part: torch's distributed checkpoint, a folder.

Read here by any one process, whole, and without running any code from it.
"""

import os
import pickle
import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import all_gather_object, barrier, get_rank, get_world_size
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict, load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from imagen.checkpoints import PARTIAL, PARTS, SHARED, size_and_crc, write_checkpoint

PLAIN = {
    *(("torch", "Size"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict")),
    *(("pathlib", "Path"), ("pathlib", "PosixPath"), ("pathlib", "WindowsPath")),
}
"""What torch's description of a checkpoint is made of beside classes of its own and types of numbers."""


def write_folder(checkpoint: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint of which each process has its part; under its name when the disk has all of it.

    All processes call it at once.
    """
    partial = folder.with_name(f"{folder.name}{PARTIAL}")
    if get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    shared = dict(checkpoint)
    parts = {"state_dict": shared.pop("state_dict")}
    parts |= {f"optimizer_{i}": state for i, state in enumerate(shared.pop("optimizer_states", []))}
    save(parts, checkpoint_id=partial)
    written: list[dict[str, tuple[int, int]]] = [{}] * get_world_size()
    all_gather_object(written, own_files(partial, get_rank()))
    if get_rank() == 0:
        shared[PARTS] = {name: known for files in written for name, known in files.items()}
        write_checkpoint(shared, partial / SHARED)
        os.replace(partial, folder)
    barrier()


def own_files(folder: Path, rank: int) -> dict[str, tuple[int, int]]:
    """Sizes and checksums of the files that a process wrote: to it they are near, its machine's memory has them yet."""
    mine = [*folder.glob(f"__{rank}_*"), *(folder.glob(".metadata") if rank == 0 else [])]
    return {path.name: size_and_crc(path) for path in mine}


def load_folder(folder: Path, module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Each process takes its part of ``module`` and ``optimizers`` from the folder; what is not divided is returned.

    All processes call it at once.
    """
    network = {"state_dict": get_model_state_dict(module)}
    load(network, storage_reader=_Reader(folder), planner=_Careful())
    set_model_state_dict(module, network["state_dict"])
    for i, optimizer in enumerate(optimizers):
        own = {f"optimizer_{i}": get_optimizer_state_dict(module, optimizer)}
        load(own, storage_reader=_Reader(folder), planner=_Careful())
        set_optimizer_state_dict(module, optimizer, own[f"optimizer_{i}"])
    return torch.load(folder / SHARED, map_location="cpu", weights_only=True)


def load_file(path: Path, module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """The same from one file, whatever kind of training wrote it. All processes call it at once."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # the first process sends whole tensors as they lie in its memory: channels_last ones would arrive in disorder
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    state = {name: value.contiguous() for name, value in checkpoint.pop("state_dict").items()}
    set_model_state_dict(module, state, options=options)
    for optimizer, numbered in zip(optimizers, checkpoint["optimizer_states"], strict=True):
        set_optimizer_state_dict(module, optimizer, _named(numbered, module, optimizer), options=options)
    return checkpoint


def read_folder(folder: Path) -> dict[str, Any]:
    """The checkpoint as one file would hold it, on the CPU."""
    parts: dict[str, Any] = {}
    _load_state_dict(parts, storage_reader=_Reader(folder), planner=_All(), no_dist=True)
    shared = torch.load(folder / SHARED, map_location="cpu", weights_only=True)
    optimizers = [_numbered(parts[name]) for name in sorted(parts) if name.startswith("optimizer_")]
    return {**shared, "state_dict": parts["state_dict"], "optimizer_states": optimizers}


def _numbered(optimizer: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state by the parameters' numbers, as the optimizer itself counts them, instead of their names."""
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    number = {name: i for i, name in enumerate(names)}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in optimizer["param_groups"]]
    return {"state": {number[name]: state for name, state in optimizer["state"].items()}, "param_groups": groups}


def _named(state: dict[str, Any], module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Undo ``_numbered`` for this optimizer, its tensors contiguous."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    own = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [own[number] for number in group["params"]]} for group in state["param_groups"]]
    values = {
        own[number]: {name: part.contiguous() if isinstance(part, Tensor) else part for name, part in parts.items()}
        for number, parts in state["state"].items()
    }
    return {"state": values, "param_groups": groups}


class _Unpickler(pickle.Unpickler):
    """Makes what the description of a checkpoint is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in PLAIN:
            return super().find_class(module, name)
        if module.startswith("torch.distributed.checkpoint.") and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:  # not what it imports, os and subprocess say
                return found
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


class _Reader(FileSystemReader):
    """torch's own, but that it unpickles with care."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _Unpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Careful(DefaultLoadPlanner):
    """torch's own, but that it unpickles with care."""

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        plain = torch.load(value, map_location="cpu", weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], plain)


class _All(_Careful, _EmptyStateDictLoadPlanner):
    """For all that there is, into an empty dict."""
