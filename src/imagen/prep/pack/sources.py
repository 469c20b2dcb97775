"""What the shards of others hold: from the parquet what is promised of every sample, from the tar the sample itself."""

import io
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from jaxtyping import Int64
from PIL import Image

from imagen.data.access import OpenTar
from imagen.data.index import PICTURE_FIELDS
from imagen.data.pixels import FORMATS, lies_sideways
from imagen.errors import UserError
from imagen.files import Location
from imagen.prep.parquet import read_parquet

log = logging.getLogger(__name__)

COLUMNS = ("key", "width", "height", "exif", "sha256", "status", "error_message")
AT_ONCE = 32  # samples, which a bucket sends in the time of one
ORIENTATION_TAG, SIDEWAYS_TAGS = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Promised:
    """The samples of a shard in the order of its parquet; sizes are upright, and 0 where the picture cannot be opened.

    ``identity`` is the hash of the picture's source where there is one, else the key: equal pictures have equal ones.
    ``doubles`` counts the rows of keys that come again.
    """

    keys: list[str]
    identity: list[str]
    width: Int64[np.ndarray, " n"]
    height: Int64[np.ndarray, " n"]
    doubles: int


@dataclass(frozen=True)
class Raw:
    """One sample as bytes; None where the tar lacks it."""

    key: str
    picture: bytes | None = None
    caption: bytes | None = None
    info: bytes | None = None


def read_promised(tar: Location) -> Promised:
    """What is known of a shard's samples without reading its pictures.

    From the parquet; where there is none of use, from the jsons. Pictures of which neither says a size are opened, for
    their size alone.
    """
    rows = _from_parquet(tar)
    if rows is None:
        rows = [_row(raw.key, parse_info(raw.info) or {}) for raw in read_samples(tar, None)]
    by_key = {row.key: row for row in rows}  # of equal keys the last, as in the index
    doubles, rows = len(rows) - len(by_key), list(by_key.values())
    sizes = {row.key: _upright(row) for row in rows if is_size(row.width) and is_size(row.height)}
    if unknown := [row.key for row in rows if row.key not in sizes]:
        sizes |= {raw.key: _measured(raw.picture or b"", by_key[raw.key].exif) for raw in read_samples(tar, unknown)}
    return Promised(
        keys=[row.key for row in rows],
        identity=[row.sha256 if row.sha256 and isinstance(row.sha256, str) else row.key for row in rows],
        width=np.array([sizes[key][0] for key in by_key], dtype=np.int64),
        height=np.array([sizes[key][1] for key in by_key], dtype=np.int64),
        doubles=doubles,
    )


def read_samples(tar: Location, keys: Sequence[str] | None) -> Iterator[Raw]:
    """The samples of these keys, in their order, or all; of a tar nothing else is read. A lost one comes empty.

    Raises: OSError where the disk or the bucket fails, which is no fault of the sample.
    """
    opened = OpenTar(tar, PICTURE_FIELDS)
    rows = {key.decode(errors="replace"): row for row, key in enumerate(opened.index["key"])}
    wanted = list(rows) if keys is None else keys
    for first in range(0, len(wanted), AT_ONCE):
        part = wanted[first : first + AT_ONCE]
        there = [key for key in part if key in rows]
        read = dict(zip(there, opened.read([rows[key] for key in there]), strict=True))
        for key in part:
            members = read.get(key)
            if members is not None and members.error is not None:
                raise members.error
            content = {} if members is None else members.content
            yield Raw(key, **{field: found for field, found in content.items() if found})  # an empty one is none


def parse_info(info: bytes | None) -> dict[str, Any] | None:
    """A sample's json, empty where it has none; None where it cannot be read. Half a surrogate becomes a question."""
    if info is None:
        return {}
    try:
        parsed = json.loads(info)
        plain = json.loads(json.dumps(parsed, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return plain if isinstance(plain, dict) else None


def orientation_of(exif: object) -> str | None:
    """What the json of img2dataset says of the camera: its field ``exif`` is a text that holds json."""
    if not isinstance(exif, str) or "Image Orientation" not in exif:
        return None
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        said = json.loads(exif)["Image Orientation"]
        return said if isinstance(said, str) else None
    return None


class _Row(NamedTuple):
    """What is read of a sample, of whatever type it was stored."""

    key: str
    width: Any
    height: Any
    exif: Any
    sha256: Any


def _from_parquet(tar: Location) -> list[_Row] | None:
    """The rows of what succeeded; None where there is no parquet, or none that names its keys."""
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            "pyarrow is missing, which reads the shards' parquet: pip install 'imagen-lab[data]'"
        ) from error
    try:
        with tar.with_suffix(".parquet").open("rb") as file:
            said = read_parquet(file, list(COLUMNS)).to_pydict()
    except FileNotFoundError:
        return None
    except (pyarrow.ArrowException, OSError) as error:
        log.warning("%s cannot be read (%s): the jsons are", tar.with_suffix(".parquet"), error)
        return None
    if "key" not in said:
        return None
    rows = zip(*(said.get(name, itertools.repeat(None)) for name in COLUMNS), strict=False)
    good = (row for *row, status, error in rows if status in (None, "success") and error is None)
    return [_Row(str(key), *others) for key, *others in good]


def _row(key: str, info: dict[str, Any]) -> _Row:
    return _Row(key, *(info.get(name) for name in _Row._fields[1:]))


def _upright(row: _Row) -> tuple[int, int]:
    return turned(row.width, row.height, lies_sideways(orientation_of(row.exif)))


def turned(width: int, height: int, sideways: bool) -> tuple[int, int]:
    """(width, height) upright."""
    return (height, width) if sideways else (width, height)


def is_size(value: object) -> TypeGuard[int]:
    """Whether a json's value can be a number of pixels."""
    return isinstance(value, int) and 0 < value < 2**31


def _measured(picture: bytes, exif: object) -> tuple[int, int]:
    """(width, height) upright, by the picture's header alone; zeros if there is none to read."""
    try:
        with Image.open(io.BytesIO(picture), formats=FORMATS) as opened:
            size, tag = opened.size, opened.getexif().get(ORIENTATION_TAG)
    except Exception:  # Pillow's decoders raise nearly anything; what is wrong is said when the picture is decoded
        return 0, 0
    sideways = lies_sideways(orientation_of(exif)) if tag is None else tag in SIDEWAYS_TAGS
    return turned(*size, sideways)
