"""Checkpoints as files: their names, how they come to lie on the disk, and how one is known to be whole."""

import os
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from imagen.errors import UserError
from imagen.files import atomic_write, disk_errors

SHARED = "meta.pt"
"""In a folder that processes wrote together, the file with all that is not divided among them; it is written last."""

PARTS = "parts"
"""Under this key it holds the size and the CRC-32 of every other file of the folder, by name."""

PARTIAL = ".partial"
"""What such a folder's name ends with until it is whole."""


class DamagedError(UserError):
    """A checkpoint is not what was written, or was never whole."""


def checkpoint_name(step: int) -> str:
    """The file name of the checkpoint after ``step`` optimizer steps; names sort as steps do."""
    return f"step_{step:09d}.ckpt"


def checkpoint_step(path: Path) -> int:
    """Undo ``checkpoint_name``."""
    return int(path.name.removeprefix("step_").removesuffix(".ckpt"))


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write one file beside ``path`` and rename it when the disk has all of it. Raises: OSError as the disk says it."""
    with atomic_write(path, durable=True) as temporary, temporary.open("wb") as file, disk_errors():
        torch.save(checkpoint, file)  # to an open file, whose errors torch hands on


def remove_checkpoint(path: Path) -> None:
    """Remove a file, or a folder that processes wrote together; one that is gone already is no error."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what processes that were killed left of folders that they wrote together."""
    for path in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def size_and_crc(path: Path) -> tuple[int, int]:
    """A file's bytes, counted, and their CRC-32, the checksum that single-file checkpoints have too."""
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that it counts as one no more; nothing of it is lost."""
    aside = path.with_name(f"{path.name}.damaged")
    os.replace(path, aside)
    return aside


def check_whole(path: Path, remedy: str = "give another") -> None:
    """Read every byte of a checkpoint and hold it against the checksums in it.

    Raises: DamagedError with ``remedy`` if it is cut off, or a bit is not as it was written.
    """
    if not path.is_dir():
        _check_zip(path, path, remedy)
        return
    if not (path / SHARED).is_file():
        raise DamagedError(f"checkpoint '{path}' is damaged (it lacks {SHARED}, which is written last): {remedy}")
    _check_zip(path / SHARED, path, remedy)
    shared = read_checkpoint(path, remedy, mmap=True)
    if PARTS not in shared:
        raise DamagedError(f"checkpoint '{path}' is damaged, or of another version (it lists no parts): {remedy}")
    for name, (size, crc) in shared[PARTS].items():
        part = path / name
        if not part.is_file() or part.stat().st_size != size or size_and_crc(part) != (size, crc):
            raise DamagedError(f"checkpoint '{path}' is damaged (its part {name} is not what was written): {remedy}")


def _check_zip(file: Path, path: Path, remedy: str) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise DamagedError(f"checkpoint '{path}' is damaged (it is cut off), or is none: {remedy}") from error
    if damaged is not None:
        raise DamagedError(f"checkpoint '{path}' is damaged (its part {damaged} is not what was written): {remedy}")


def read_checkpoint(path: Path, remedy: str = "give another", *, mmap: bool = False) -> dict[str, Any]:
    """A training checkpoint as written by Lightning, read without running any code from it.

    Of a folder that processes wrote together it is what they have in common, without network and optimizer. ``mmap``
    leaves tensors on the disk until they are looked at.

    Raises: DamagedError with ``remedy`` if it is damaged or no checkpoint.
    """
    try:
        file = path / SHARED if path.is_dir() else path
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # whatever torch says of a cut or foreign file, the user's remedy is one
        raise DamagedError(f"checkpoint '{path}' is damaged, or is none: {remedy}") from error
    if not isinstance(checkpoint, dict) or "imagen" not in checkpoint:
        raise UserError(f"checkpoint '{path}' was not written by this project's train.py")
    return checkpoint
