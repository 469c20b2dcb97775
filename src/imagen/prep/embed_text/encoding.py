"""Captions into sidecars without the encoder ever waiting: one thread reads and tokenizes, one encodes, one writes.

What passes between them is a stream of batches to encode and, behind the batches that it needs, of rows to write. Rows
are in the order of the image shards, whole shards one after the other; batches are sorted by length within a window of
many captions, which may reach over several shards.
"""

import itertools
import json
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tqdm import tqdm

from imagen.data import tokens
from imagen.data.index import TEXT_FIELDS, index_of, write_index
from imagen.data.shards import ENCODER_MEMBER, TOKENS_SUFFIX, read_captions, stats_path, write_tar
from imagen.errors import UserError
from imagen.files import Location, write_json
from imagen.prep.ahead import ahead
from imagen.prep.embed_text.sidecar import Sidecar
from imagen.text_encoder import TextEncoder

UNREADABLE = "no caption that can be read"
"""Why a sample that the images' stats count has no embedding."""

Row = tuple[Sidecar, str | None, "Entry | None"]


@dataclass(eq=False)
class Entry:
    """One caption: what is to be stored under each of its keys, once it has been encoded."""

    caption: str  # its beginning, to name it
    hash: str
    lost: str = ""  # the words past the encoder's max_length
    count: int = 0  # of its tokens
    member: bytes = b""
    error_sum: float = 0.0
    error_max: float = 0.0


@dataclass(eq=False)
class Batch:
    """Captions of like length, tokenized, then coded [b n d], with the error [b n] of each token."""

    entries: list[Entry]
    tokenized: list[list[Any]]
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    error: torch.Tensor | None = None
    finite: torch.Tensor | None = None


@dataclass(eq=False)
class Rows:
    """What may be written once all earlier batches are encoded: (sidecar, key, entry), each's first without key."""

    rows: list[Row]
    fresh: int  # entries that batches have brought, of which the progress bar has heard


@dataclass(frozen=True)
class Encoding:
    """How captions are encoded: ``window`` distinct captions are sorted together and cut into batches.

    A batch has at most ``batch_size`` captions and ``max_batch_tokens`` tokens, padding too (or a single caption). A
    caption met again is not encoded again while what it became is among the ``cache_bytes`` used last.
    """

    encoder: TextEncoder
    storage: str
    batch_size: int
    max_batch_tokens: int
    window: int
    cache_bytes: int

    def __call__(self, sidecars: list[Sidecar], bar: tqdm) -> Iterator[Sidecar]:
        """Each sidecar once it is written, found whole, or given up as its images are damaged (``why`` says so)."""
        # an encoder on the CPU has every core already: threads beside it only slow it
        overlap = self.encoder.device.type != "cpu"
        batches_ahead = 2 * math.ceil(self.window / self.batch_size)
        items = ahead(self._encoded(ahead(self.prepared(sidecars), overlap * batches_ahead)), overlap * 2)
        try:
            rows = self._rows(items, bar)
            for sidecar, _, _ in rows:
                due, expected = not sidecar.why, not sidecar.looks_whole
                bar.total += sidecar.captions * (due - expected)
                if due:
                    self._write(sidecar, itertools.islice(rows, sidecar.found))
                yield sidecar
        finally:
            items.close()

    def prepared(self, sidecars: list[Sidecar]) -> Iterator[Batch | Rows]:
        """Read and tokenize: the batches, and behind those that they need the rows."""
        known = _Recent(self.cache_bytes)
        rows: list[Row] = []
        fresh: dict[str, tuple[Entry, str]] = {}
        for sidecar in sidecars:
            rows.append((sidecar, None, None))
            captions = self._captions(sidecar)
            if sidecar.why and not fresh:
                yield Rows(rows, 0)
                rows = []
            sidecar.found = len(captions)
            for key, caption in captions.items():
                of = tokens.caption_hash(caption)
                entry = known.get(of) or (fresh[of][0] if of in fresh else None)
                if entry is None:
                    entry = Entry(caption[:60], of)
                    fresh[of] = (entry, caption)
                rows.append((sidecar, key, entry))
                if len(fresh) == self.window or len(rows) == 16 * self.window:
                    yield from self._window(rows, fresh, known)
                    rows, fresh = [], {}
        yield from self._window(rows, fresh, known)

    def _captions(self, sidecar: Sidecar) -> dict[str, str]:
        try:
            captions = read_captions(sidecar.images)
        except UserError as error:
            sidecar.why = str(error)
            return {}
        if sidecar.is_whole(captions):
            sidecar.why = "whole"
            return {}
        return captions

    def _window(
        self,
        rows: list[Row],
        fresh: dict[str, tuple[Entry, str]],
        known: "_Recent",
    ) -> Iterator[Batch | Rows]:
        if fresh:
            entries, captions = (list(column) for column in zip(*fresh.values(), strict=True))
            tokenized = self.encoder.tokenize(captions)
            full = [i for i, row in enumerate(tokenized) if len(row) == self.encoder.max_length]
            for i, lost in zip(full, self.encoder.cut([captions[i] for i in full]) if full else [], strict=True):
                entries[i].lost = lost[:60]
            for entry, row in zip(entries, tokenized, strict=True):
                entry.count = len(row)
                known.add(entry, tokens.member_bytes(len(row), self.encoder.width, self.storage))
            yield from self._batches(entries, tokenized)
        yield Rows(rows, len(fresh))

    def _batches(self, entries: list[Entry], tokenized: list[list[Any]]) -> Iterator[Batch]:
        """The longest first: what does not fit into memory is known at once."""
        order = sorted(range(len(entries)), key=lambda i: (-len(tokenized[i]), entries[i].hash))
        while order:
            most = max(1, min(self.batch_size, self.max_batch_tokens // len(tokenized[order[0]])))
            taken, order = order[:most], order[most:]
            yield Batch([entries[i] for i in taken], [tokenized[i] for i in taken])

    def _encoded(self, items: Iterable[Batch | Rows]) -> Iterator[Batch | Rows]:
        for item in items:
            if isinstance(item, Batch):
                exact = self.encoder.encode_tokenized(item.tokenized).tokens
                item.parts = tokens.code(exact, self.storage)
                item.error = tokens.relative_error(exact, item.parts)
                item.finite = exact.isfinite().all(-1)
            yield item

    def _rows(self, items: Iterable[Batch | Rows], bar: tqdm) -> Iterator[Row]:
        for item in items:
            if isinstance(item, Batch):
                self._fill(item)
                bar.update(len(item.entries))
            else:
                bar.update(sum(key is not None for _, key, _ in item.rows) - item.fresh)
                yield from item.rows

    def _fill(self, batch: Batch) -> None:
        """Cut each caption's real tokens out of a batch; UserError where they are not such as can be stored."""
        assert batch.error is not None
        assert batch.finite is not None
        parts = {name: part.cpu() for name, part in batch.parts.items()}
        lengths = torch.tensor([len(row) for row in batch.tokenized])
        padding = torch.arange(batch.error.shape[1]) >= lengths[:, None]
        error = batch.error.cpu().masked_fill(padding, 0.0)
        finite = (batch.finite.cpu() | padding).all(-1).tolist()
        sums, most = error.double().sum(-1).tolist(), error.amax(-1).tolist()
        for i, entry in enumerate(batch.entries):
            if not math.isfinite(sums[i]):
                raise self._unfit(entry, finite[i])
            entry.member = tokens.pack({name: part[i, : entry.count] for name, part in parts.items()}, entry.hash)
            entry.error_sum, entry.error_max = sums[i], most[i]
        batch.parts = {}

    def _unfit(self, entry: Entry, finite: bool) -> UserError:
        if finite:
            return UserError(
                f"storage={self.storage} cannot hold the tokens that text_encoder {self.encoder.name} gives for "
                f"{entry.caption!r}, they are too large: store them as storage=bf16"
            )
        return UserError(
            f"text_encoder {self.encoder.name} gives infinite or undefined tokens for {entry.caption!r}: its weights "
            "are damaged, or its dtype is too narrow (text_encoder.dtype=fp32)"
        )

    def _write(self, sidecar: Sidecar, rows: Iterable[Row]) -> None:
        started, stored = time.time(), []

        def members() -> Iterator[tuple[str, bytes]]:
            yield ENCODER_MEMBER, json.dumps(sidecar.fingerprint, indent=2).encode()
            for _, key, entry in rows:
                assert entry is not None
                stored.append(replace(entry, member=b""))  # the bytes are in the tar
                yield f"{key}{TOKENS_SUFFIX}", entry.member

        tar: Location = sidecar.tar
        stats_path(tar).unlink(missing_ok=True)
        written = write_tar(tar, members())
        write_index(tar, index_of(written.members, TEXT_FIELDS))
        lost = [entry for entry in stored if entry.lost]
        missing = sidecar.captions - len(stored)
        counts = {
            "count": sidecar.captions,
            "successes": len(stored),
            "distinct": len({entry.hash for entry in stored}),
        }
        reasons = {"success": len(stored)} | ({UNREADABLE: missing} if missing > 0 else {})
        ours = {"status_dict": reasons, "tokens": sum(entry.count for entry in stored)}
        most = max((entry.error_max for entry in stored), default=0.0)
        errors = {"error_sum": math.fsum(entry.error_sum for entry in stored), "error_max": most}
        cut = {"cut": len(lost), "cut_first": f"{lost[0].caption!r} lost {lost[0].lost!r}" if lost else ""}
        times = {"duration": time.time() - started, "start_time": started, "end_time": time.time()}
        made = {"recipe": sidecar.recipe, "bytes": written.size, "sha256": written.sha256}
        sidecar.stats = counts | ours | errors | cut | times | made
        write_json(stats_path(tar), sidecar.stats)


class _Recent:
    """The entries used last, as many as their members fill ``most`` bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0
        self.entries: OrderedDict[str, tuple[Entry, int]] = OrderedDict()

    def get(self, of: str) -> Entry | None:
        found = self.entries.get(of)
        if found is None:
            return None
        self.entries.move_to_end(of)
        return found[0]

    def add(self, entry: Entry, size: int) -> None:
        self.entries[entry.hash] = (entry, size)
        self.size += size
        while self.size > self.most:
            self.size -= self.entries.popitem(last=False)[1][1]
