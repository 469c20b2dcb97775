"""The samples of a tar from the web, one after the other, whatever it holds."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from imagen.data import shards
from imagen.data.index import PICTURE_FIELDS
from imagen.errors import UserError
from imagen.files import Location

MAX_BYTES = 2**26
"""Members of more bytes (64 MiB) are not read: what a header claims is allocated before it is found missing."""

MAX_FIELDS, MAX_DEPTH = 256, 8
"""Of a json: each field becomes a column of the shard's parquet."""

_KEY = re.compile(r"[\w-]+([./][\w-]+)*")  # no "..", no absolute path: keys become names in tars that people unpack
_KEY_BYTES = 80  # a tar's header has room for 100, of which ".safetensors" takes 12


@dataclass
class Sample:
    """What a tar holds of one key; ``fault`` says why it cannot be used, None if nothing is known against it."""

    key: str
    picture: bytes = b""
    caption: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None

    @property
    def orientation(self) -> str | None:
        """What img2dataset's json says of how the camera was held ("Rotated 90 CW")."""
        try:
            return str(json.loads(self.info["exif"])["Image Orientation"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


def read_samples(tar: Location) -> Iterator[Sample]:
    """Every sample in the tar's order: neighbours of one key. Of a damaged tar those before the damage.

    Only pictures, ``.txt`` and ``.json`` are read; a name is only a name. Raises: OSError where the disk or the bucket
    fails, which is no fault of the tar.
    """
    seen = set()
    for key, known in _undamaged(tar):
        sample = _sample(key, known)
        if key in seen:
            sample.fault = "duplicate key"
        seen.add(key)
        yield sample


def _undamaged(tar: Location) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    with suppress(UserError):  # damaged from there on; how many samples that costs, the shard's own stats tell
        yield from shards.read_samples(tar, PICTURE_FIELDS, MAX_BYTES)


def _sample(key: str, known: dict[str, bytes | None]) -> Sample:
    sample = Sample(key)
    if _KEY.fullmatch(key) is None or len(key.encode(errors="replace")) > _KEY_BYTES:
        sample.fault = "bad key"
    if any(content is None for content in known.values()):
        sample.fault = sample.fault or "too large"
        return sample
    sample.picture = known.get("picture") or b""
    if "picture" not in known:
        sample.fault = sample.fault or "no picture"
    try:
        sample.info = _info(known.get("info") or b"{}")
    except (ValueError, RecursionError):
        sample.fault = sample.fault or "bad json"
    try:
        said = sample.info.get("caption")
        text = known.get("caption")
        sample.caption = text.decode() if text is not None else said if isinstance(said, str) else ""
    except UnicodeDecodeError:
        sample.fault = sample.fault or "bad caption"
    if "\0" in sample.caption:
        sample.fault = sample.fault or "bad caption"
    return sample


def _info(content: bytes) -> dict[str, Any]:
    info = json.loads(content)
    if not isinstance(info, dict) or len(info) > MAX_FIELDS or _deeper(info, MAX_DEPTH):
        raise ValueError("not the fields of a sample")
    try:
        json.dumps(info, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a pair of surrogates, which neither a tar nor a parquet can hold
        info = json.loads(json.dumps(info, ensure_ascii=False).encode(errors="replace"))
    return info


def _deeper(value: object, levels: int) -> bool:
    """Whether lists and objects lie within each other more than ``levels`` deep."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(one, levels - 1) for one in inner)
