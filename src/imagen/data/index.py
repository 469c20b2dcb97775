"""Where each sample of a tar lies: what lets a loader read any sample without reading those before it.

``00000_index.npy`` beside ``00000.tar`` is an array with a row a sample, in the tar's order: its key, and for each
field where its bytes begin (0: the sample lacks it) and how many they are. It is made while the tar is written, or
from its headers alone.
"""

import io
import logging
from collections.abc import Iterable, Iterator

import numpy as np

from imagen.data.shards import Span, by_key, walk
from imagen.errors import UserError
from imagen.files import Location, write_array

log = logging.getLogger(__name__)

PICTURE_FIELDS = {
    "png": "picture",
    "jpg": "picture",
    "jpeg": "picture",
    "webp": "picture",
    "txt": "caption",
    "json": "info",
}
"""The members of a sample of an image tar that are ever looked into, by their suffix."""

TEXT_FIELDS = {"safetensors": "tokens"}
"""The same of a sidecar."""


def index_path(tar: Location) -> Location:
    """``00000.tar`` -> ``00000_index.npy``."""
    return tar.with_name(f"{tar.name.removesuffix('.tar')}_index.npy")


def index_of(members: Iterable[Span], fields: dict[str, str]) -> np.ndarray:
    """The index of a tar of these members; ``fields`` gives each suffix its field.

    Of members of one key and field the last counts, as for a tar unpacked on a disk.
    """
    rows = []
    for key, spans in by_key(members, fields):
        row = {field: (span.offset, span.size) for field, span in spans}
        name = key.encode(errors="surrogateescape")  # as tarfile read it
        rows.append((name, *(row.get(field, (0, 0)) for field in dict.fromkeys(fields.values()))))
    width = max((len(row[0]) for row in rows), default=1)
    kinds = [(field, np.dtype([("offset", "<i8"), ("size", "<i8")])) for field in dict.fromkeys(fields.values())]
    return np.array(rows, dtype=[("key", f"S{max(1, width)}"), *kinds])


def scan(tar: Location, fields: dict[str, str]) -> np.ndarray:
    """The index of a tar by its headers; a damaged one is indexed as far as it can be read."""
    return index_of(_headers(tar), fields)


def _headers(tar: Location) -> Iterator[Span]:
    try:
        for member in walk(tar):
            yield member.span
    except UserError as error:  # damage; a disk or bucket that fails once is none, and a short index would be lasting
        log.warning("%s", error)


def write_index(tar: Location, index: np.ndarray) -> None:
    """Write the index of ``tar`` beside it."""
    write_array(index_path(tar), index)


def read_index(tar: Location, fields: dict[str, str]) -> np.ndarray:
    """The index beside ``tar``, or where there is none (img2dataset writes none) what its headers say now.

    Raises: UserError where the index is damaged.
    """
    path = index_path(tar)
    try:
        index = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except FileNotFoundError:
        return scan(tar, fields)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, and the tar's own headers are read") from error
    if set(index.dtype.names or ()) != {"key", *fields.values()}:
        raise UserError(f"{path} is no index of {sorted(set(fields.values()))}: remove it")
    return index
