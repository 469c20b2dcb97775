"""Files that arrive whole or not at all, on this machine's disk or behind any URL that fsspec knows."""

import errno
import io
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from upath import UPath

from imagen.errors import UserError

Location = Path | UPath
"""A file or folder: a plain path where it is local, else one that speaks of a bucket in the same words."""

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "abfs": "adlfs"}
"""What serves the commonest kinds of URL that fsspec does not serve by itself."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a used-up quota, a file larger than may be."""


def locate(url: str | Location) -> Location:
    """A path or URL (``s3://bucket/folder``, ``gs://``, ``hf://``, ``memory://``) as a location.

    A location of a bucket comes back with a connection of this process's own: after a fork its parent's is of no use.
    Raises: UserError where nothing serves such URLs, or the package that would is missing.
    """
    if isinstance(url, Path):
        return url
    if isinstance(url, UPath):
        return UPath(str(url), **url.storage_options)
    scheme = url.partition("://")[0]
    if "://" not in url:
        return Path(url).expanduser()
    try:
        location = UPath(url)
        _ = location.fs  # which is when the package is asked for
        return location
    except ImportError as error:
        raise UserError(f"{url} needs a package: pip install {PACKAGES.get(scheme, scheme)}") from error
    except ValueError as error:
        raise UserError(f"{url} cannot be read: nothing serves {scheme}:// (s3, gs, hf or a plain path do)") from error


@contextmanager
def atomic_write(path: str | Location, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path; what was written there takes ``path``'s name only if the block ends without an error.

    On a disk it lies beside ``path`` and is renamed; a bucket gets it in one upload, which it shows only when whole.
    ``durable`` waits until the disk has it, so that it is whole even if the power goes. What a process of this machine
    that was killed left in the folder goes, by one look at it.
    """
    path = locate(path)
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder, naming(folder):
            temporary = Path(folder) / "whole"
            temporary.touch()
            yield temporary
            path.fs.put_file(str(temporary), path.path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path.parent.absolute())
    temporary = path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.tmp")
    try:
        with naming(path):
            temporary.touch()
            mode = temporary.stat().st_mode  # what the umask says; some writers make a private file of their own
            yield temporary
            temporary.chmod(mode)
            if durable:
                _flush(temporary)
            os.replace(temporary, path)
            if durable:
                _flush(path.parent)  # which is where the name is
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until the disk has what was written to a file or, of a folder, which names it holds."""
    if os.name != "posix" and path.is_dir():  # elsewhere a folder cannot be opened
        return
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Of a full disk in here the error names ``path``: a write to an open file leaves it out."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def disk_errors() -> Iterator[None]:
    """What the disk says comes as the ``OSError`` that it is, where torch or safetensors would say something else."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error.__context__, OSError):  # torch's writer had it from the file
            raise error.__context__ from error
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise


@cache  # a folder may hold 100,000 files, and as many may be written
def _remove_stale(folder: Path) -> None:
    """Remove the temporary files of this machine's processes that are no more."""
    for name in names_in(folder):
        *_, machine, process, suffix = ["", "", *name.split(".")]
        if suffix == "tmp" and machine == _machine() and process.isdecimal() and not _lives(int(process)):
            (folder / name).unlink(missing_ok=True)


def _machine() -> str:
    """Of a disk that machines share, a process's number may be that of another's; without dots, which part a name."""
    return socket.gethostname().replace(".", "-")


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_json(path: str | Location, value: Any, *, allow_nan: bool = True) -> None:
    """Write ``value`` as indented JSON, whole or not at all.

    ``allow_nan`` lets NaN and Infinity through, which strict readers refuse. Raises: ValueError for them without it.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=allow_nan)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, again: str) -> dict[str, Any]:
    """The keys of a JSON file; ``again`` says how the file comes to be anew. Raises: UserError if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # neither JSON nor UTF-8
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: delete it, and {again}")
    return found


def write_array(path: str | Location, array: np.ndarray) -> None:
    """Write ``array`` as ``.npy``, whole or not at all."""
    content = io.BytesIO()  # NumPy's own error does not say that the disk is full
    np.save(content, array, allow_pickle=False)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def make_folder(path: str | Location, argument: str) -> Location:
    """Make a folder to write in, with those above it. Raises: UserError naming ``argument`` if it cannot be."""
    path = locate(path)
    if not isinstance(path, Path):
        return path  # a bucket's folders come with what is in them
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{argument}={path} cannot be made a folder ({error.strerror}): give another") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"{argument}={path} cannot be written to (no permission): give another")
    return path


def names_in(folder: Location) -> set[str]:
    """The names of all that lies in ``folder``, by one listing; none where there is no such folder."""
    try:
        return {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
