"""Counts of shards from their parquet files and stats; no picture is opened for them."""

import bisect
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from imagen.data.shards import stats_path
from imagen.files import Location

COLUMNS = ("caption", "width", "height", "original_width", "original_height", "error_message")

EDGES: dict[str, tuple[int | float, ...]] = {
    "characters": (0, 1, 10, 20, 40, 60, 80, 100, 150, 200, 300, 500, 1000),
    "words": (0, 1, 2, 3, 5, 8, 12, 16, 20, 30, 50, 100),
    "short side": (0, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 4096),
    "short side of the original": (0, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 4096),
    "aspect": (0, 0.33, 0.5, 0.66, 0.75, 0.95, 1.05, 1.33, 1.5, 2.0, 3.0),
}
"""The histograms, and where their bins begin; the last bin is open. Aspect is width over height."""


@dataclass
class Counts:
    """Sums over shards; ``values`` holds how often each value of a histogram was met."""

    shards: int = 0
    pictures: int = 0
    bytes: int = 0
    described: int = 0  # pictures with a row in a parquet: those that the histograms are of
    reasons: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    values: dict[str, Counter[int | float]] = field(default_factory=lambda: {name: Counter() for name in EDGES})

    def __add__(self, other: "Counts") -> "Counts":
        both = [(one.name, getattr(self, one.name), getattr(other, one.name)) for one in fields(self)]
        joined: dict[str, Any] = {name: mine + theirs for name, mine, theirs in both if name != "values"}
        return Counts(**joined, values={name: self.values[name] + other.values[name] for name in EDGES})

    def histogram(self, name: str) -> list[int]:
        """How many values are in each bin."""
        bins = [0] * len(EDGES[name])
        for value, count in self.values[name].items():
            bins[bisect.bisect_right(EDGES[name], value) - 1] += count
        return bins

    def quantile(self, name: str, share: float) -> int | float | None:
        """The least value that ``share`` of all do not exceed; None where there are none."""
        values = sorted(self.values[name].items())
        wanted = share * self.values[name].total()
        for value, count in values:
            wanted -= count
            if wanted <= 0:
                return value
        return None

    def as_json(self) -> dict[str, Any]:
        """For the report: histograms as a list of [where the bin begins, count]."""
        drawn = {
            name: {
                "median": self.quantile(name, 0.5),
                "percent_5": self.quantile(name, 0.05),
                "percent_95": self.quantile(name, 0.95),
                "bins": [list(pair) for pair in zip(EDGES[name], self.histogram(name), strict=True)],
            }
            for name in EDGES
            if self.values[name]
        }
        sums = {"shards": self.shards, "pictures": self.pictures, "bytes": self.bytes, "described": self.described}
        return {**sums, "reasons": dict(self.reasons), "notes": dict(self.notes), "histograms": drawn}


@dataclass(frozen=True)
class CountShard:
    """The counts of one shard; ``rows`` reads its parquet too, which the text folders have none of."""

    rows: bool

    def __call__(self, tar: Location) -> tuple[Location, Counts]:
        counts = Counts(shards=1, bytes=tar.stat().st_size)
        stats = _stats(tar, counts)
        counts.pictures = int(stats.get("successes") or 0)
        counts.reasons.update(
            {reason: int(count) for reason, count in (stats.get("status_dict") or {}).items() if reason != "success"}
        )
        if self.rows:
            _count_rows(tar, counts)
        return tar, counts


def _stats(tar: Location, counts: Counts) -> dict[str, Any]:
    try:
        stats = json.loads(stats_path(tar).read_bytes())
    except (OSError, ValueError):
        stats = None
    if not isinstance(stats, dict):
        counts.notes["with a _stats.json that cannot be read: its samples are not counted"] += 1
        return {}
    return stats


def _count_rows(tar: Location, counts: Counts) -> None:
    import pyarrow

    try:
        for caption, size, original in _rows(tar.with_suffix(".parquet")):
            _count(caption or "", size, original, counts)
    except FileNotFoundError:
        counts.notes["without a parquet: captions and sizes are not in the histograms"] += 1
    except (pyarrow.ArrowException, OSError):
        counts.notes["with a parquet that cannot be read: captions and sizes are not in the histograms"] += 1


def _rows(path: Location) -> Iterator[tuple[str | None, tuple[int, int] | None, tuple[int, int] | None]]:
    """Caption, size and original size of every sample that is in the tar, a few at a time."""
    import pyarrow.parquet

    with path.open("rb") as file, pyarrow.parquet.ParquetFile(file) as parquet:
        there = [name for name in COLUMNS if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(batch_size=2048, columns=there, use_threads=False):
            columns = {name: [None] * len(batch) for name in COLUMNS} | batch.to_pydict()
            for caption, *sizes, error in zip(*(columns[name] for name in COLUMNS), strict=True):
                if error is None:
                    yield caption, _size(sizes[:2]), _size(sizes[2:])


def _size(pair: Sequence[Any]) -> tuple[int, int] | None:
    return (int(pair[0]), int(pair[1])) if all(pair) else None


def _count(caption: str, size: tuple[int, int] | None, original: tuple[int, int] | None, counts: Counts) -> None:
    counts.described += 1
    counts.values["characters"][len(caption)] += 1
    counts.values["words"][len(caption.split())] += 1
    if size is not None:
        counts.values["short side"][min(size)] += 1
        counts.values["aspect"][round(size[0] / size[1], 2)] += 1
    if original is not None:
        counts.values["short side of the original"][min(original)] += 1
