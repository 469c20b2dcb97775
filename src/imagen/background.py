"""Checkpoints written while training goes on: the state is copied to the host, and a thread writes the copy."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from imagen.checkpoints import write_checkpoint
from imagen.sharded_checkpoint import read_folder


class HostCopy:
    """Copies of nested state in the host's memory, made in one sweep; the next copy takes the same memory.

    That of a GPU's tensors is page-locked, which the copying of gigabytes is several times faster into.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def take(self, state: Any) -> Any:
        """``state`` with every tensor copied: what is done to the original from now on changes nothing in it."""
        taken = self._taken(state, ())
        if any(buffer.is_pinned() for buffer in self._buffers.values()):
            torch.cuda.synchronize()
        return taken

    def _taken(self, value: Any, place: tuple[Any, ...]) -> Any:
        if isinstance(value, Tensor):
            return self._copied(value.detach(), place)
        if isinstance(value, dict):
            same = copy.copy(value)  # a state_dict carries more than its entries
            same.update({key: self._taken(entry, (*place, key)) for key, entry in value.items()})
            return same
        if isinstance(value, list | tuple):
            return type(value)([self._taken(entry, (*place, i)) for i, entry in enumerate(value)])
        return copy.deepcopy(value)

    def _copied(self, value: Tensor, place: tuple[Any, ...]) -> Tensor:
        buffer = self._buffers.get(place)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self._buffers[place] = buffer
        return buffer.copy_(value, non_blocking=True)


class CheckpointWriter(TorchCheckpointIO):
    """Lightning's way to the disk. ``then`` is called when a checkpoint is whole, in the thread that wrote it.

    With ``background`` a checkpoint costs training the copy to the host, and the host the memory of it; one is written
    at a time. What goes wrong in the thread is raised by ``check``, which is to be called every now and then, or
    ``wait``, which is to be called at last.
    """

    def __init__(self, then: Callable[[], None], *, background: bool) -> None:
        super().__init__()
        self._then = then
        self._copy = HostCopy()
        self._thread = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises: what went wrong with the one before."""
        self.wait()
        if self._thread is None:
            self._write(checkpoint, Path(path))
        else:
            self._writing = self._thread.submit(self._write, self._copy.take(checkpoint), Path(path))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A folder that processes wrote together is read like a file, whole."""
        return read_folder(Path(path)) if Path(path).is_dir() else super().load_checkpoint(path, *args, **kwargs)

    def check(self) -> None:
        """Raises: what went wrong with the last one, if that is known by now."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is left to write. Raises: what went wrong with the last one."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def teardown(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        write_checkpoint(checkpoint, path)
        self._then()
