"""Any sample of a shard by its row, through the indexes of its tars: nothing that lies before it is read."""

import logging
import os
import tarfile
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from imagen.data.index import PICTURE_FIELDS, TEXT_FIELDS, read_index
from imagen.data.reader import Raw
from imagen.data.shards import MAX_BYTES, read_encoder
from imagen.data.stream import Shard
from imagen.errors import UserError
from imagen.files import Location, locate

log = logging.getLogger(__name__)

OPEN_SHARDS = 64
"""How many shards a worker keeps open, with their indexes (1 MB for 10,000 samples)."""

_HEADER = tarfile.BLOCKSIZE
_SIZE = slice(124, 136)  # of a member, in octal digits; more than 8 GB is written otherwise
_LONG_NAME = 90
"""A tar's header may hold less than the whole of a longer name, and nothing of one that is not ASCII."""

Span = tuple[int, int]


@dataclass
class ReadSamples:
    """(shard, row) pairs into raw samples, in the order asked for; what cannot be read says so in its ``fault``.

    ``fingerprint`` is that of the encoder whose tokens are read; None reads none.
    """

    fingerprint: dict[str, Any] | None
    _open: "OrderedDict[Shard, OpenShard]" = field(default_factory=OrderedDict, init=False)

    def __call__(self, wanted: Sequence[tuple[Shard, int]]) -> list[Raw]:
        rows: dict[Shard, list[int]] = {}
        for shard, row in wanted:
            rows.setdefault(shard, []).append(row)
        read = {shard: iter(self._shard(shard).read(of_shard)) for shard, of_shard in rows.items()}
        return [next(read[shard]) for shard, _ in wanted]

    def _shard(self, shard: Shard) -> "OpenShard":
        if shard not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                self._open.popitem(last=False)
            self._open[shard] = OpenShard(shard, self.fingerprint)
        self._open.move_to_end(shard)
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # a worker opens for itself


class OpenShard:
    """A shard with its two tars open. One that cannot be opened gives samples that say why."""

    def __init__(self, shard: Shard, fingerprint: dict[str, Any] | None) -> None:
        self.shard = shard
        self.fault: str | None = None
        self.texts: OpenTar | None = None
        try:
            self.pictures = OpenTar(shard.images, PICTURE_FIELDS)
            if len(self.pictures.index) != shard.count:
                log.warning(
                    "%s has %d samples, its _stats.json says %d", shard.images, len(self.pictures.index), shard.count
                )
            if shard.text is not None:
                self._open_texts(shard.text, fingerprint)
        except (UserError, OSError) as error:
            log.warning("%s cannot be read (%s)", shard.images, error)
            self.fault = "the shard cannot be read"

    def _open_texts(self, text: Location, fingerprint: dict[str, Any] | None) -> None:
        if read_encoder(text) != fingerprint:
            log.warning("%s was made by another encoder than the first of its folder: it is not read", text)
            return
        self.texts = OpenTar(text, TEXT_FIELDS)
        self._rows = _matching(self.pictures.index["key"], self.texts.index["key"])

    def read(self, rows: list[int]) -> list[Raw]:
        """One raw sample for each row."""
        shard = str(self.shard.images)
        if self.fault is not None:
            return [Raw(shard, f"#{row}", fault=self.fault) for row in rows]
        there = [row for row in rows if row < len(self.pictures.index)]
        members = dict(zip(there, self.pictures.read(there), strict=True))
        texts: dict[int, Any] = {}
        if self.texts is not None:
            paired = [row for row in there if self._rows[row] >= 0]
            texts = dict(zip(paired, self.texts.read([int(self._rows[row]) for row in paired]), strict=True))
        return [self._raw(shard, row, members.get(row), texts.get(row)) for row in rows]

    def _raw(self, shard: str, row: int, members: "Members | None", texts: "Members | None") -> Raw:
        if members is None:
            return Raw(shard, f"#{row}", fault="the tar is damaged")
        key = self.pictures.index["key"][row].decode(errors="surrogateescape")
        fault = members.fault or (texts.fault if texts is not None else None)
        tokens = None if texts is None else texts.content.get("tokens")
        return Raw(shard, key, **members.content, tokens=tokens, fault=fault, shape=self.shard.shape)


@dataclass
class Members:
    """The fields of one sample that a tar holds, or why they cannot be trusted; ``error`` where reading failed."""

    content: dict[str, bytes]
    fault: str | None = None
    error: Exception | None = None


class OpenTar:
    """A tar with its index, local or remote."""

    def __init__(self, tar: Location, fields: dict[str, str]) -> None:
        tar = locate(tar)
        self.index = read_index(tar, fields)
        self.tar, self.fields = tar, tuple(dict.fromkeys(fields.values()))
        # a row of plain numbers costs a tenth of what the index's own rows do
        self._offsets = np.stack([self.index[name]["offset"] for name in self.fields], axis=1)
        self._sizes = np.stack([self.index[name]["size"] for name in self.fields], axis=1)
        self._file = None
        if isinstance(tar, Path):
            self._file = os.open(tar, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)

    def read(self, rows: list[int]) -> list[Members]:
        """The fields of each row, read in one stretch each: a sample's members are neighbours."""
        entries = [self._entries(row) for row in rows]
        spans = [_span(there) for there in entries]
        found = zip(rows, entries, spans, self._bytes(spans), strict=True)
        return [self._members(row, there, begin, data) for row, there, (begin, _), data in found]

    def _entries(self, row: int) -> dict[str, Span]:
        """Offset and size of the fields that a sample has."""
        numbers = zip(self.fields, self._offsets[row].tolist(), self._sizes[row].tolist(), strict=True)
        return {name: (offset, size) for name, offset, size in numbers if offset}

    def _bytes(self, spans: list[Span]) -> list[bytes | Exception]:
        if self._file is not None:
            return [_pread(self._file, begin, end) for begin, end in spans]
        begins, ends = ([span[end] for span in spans] for end in (0, 1))
        assert not isinstance(self.tar, Path)
        # all at once: a bucket answers a hundred requests in the time of one
        return self.tar.fs.cat_ranges([self.tar.path] * len(spans), begins, ends, on_error="return")

    def _members(self, row: int, entries: dict[str, Span], begin: int, data: bytes | Exception) -> Members:
        if isinstance(data, Exception):
            return Members({}, f"the tar cannot be read ({data})", data)
        key = bytes(self.index["key"][row])
        content: dict[str, bytes] = {}
        for name, (offset, size) in entries.items():
            first = offset - begin
            if len(data) < first + size or not _stands(data[first - _HEADER : first], key, size):
                return Members({}, "the tar is damaged, or not the one that was indexed")
            content[name] = data[first : first + size]
        return Members(content)


def _pread(file: int, begin: int, end: int) -> bytes | Exception:
    try:
        return os.pread(file, min(end - begin, MAX_BYTES), begin)
    except OSError as error:  # of a disk or a network that fails for this sample alone
        return error


def _span(entries: dict[str, Span]) -> Span:
    """From the first header of a sample to its last byte."""
    begin = min((offset for offset, _ in entries.values()), default=_HEADER) - _HEADER
    return begin, max((offset + size for offset, size in entries.values()), default=begin)


def _stands(header: bytes, key: bytes, size: int) -> bool:
    """Whether a tar's header is that of a member of ``key`` of ``size`` bytes, as far as it says so in plain words."""
    named = len(key) > _LONG_NAME or not key.isascii() or header.startswith(key + b".")
    octal = header[_SIZE].rstrip(b" \0")
    return named and (bool(octal.strip(b"01234567")) or int(octal or b"0", 8) == size)


def _matching(keys: np.ndarray, others: np.ndarray) -> Int[np.ndarray, " n"]:
    """For each of ``keys`` where it is among ``others``, -1 where it is not."""
    if np.array_equal(keys, others):  # the usual case: sidecars are written in the order of the pictures
        return np.arange(len(keys))
    if not len(others):
        return np.full(len(keys), -1)
    order = np.argsort(others, kind="stable")
    place = np.clip(np.searchsorted(others[order], keys, side="right") - 1, 0, None)
    return np.where(others[order][place] == keys, order[place], -1)
