"""The first phase: every sample is decoded once, and what was seen of it is written down beside its reason to go.

``<output>/reports/filter/<shard>.parquet`` has a row a sample, in the tar's order. What was seen is independent of
every threshold; so where only a threshold changed, reasons are judged anew and no picture is opened again.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imagen.data.writer import source_digest
from imagen.files import Location, atomic_write
from imagen.prep.filter.picture import Unusable, looks, open_upright
from imagen.prep.filter.rules import Rules
from imagen.prep.filter.samples import Sample, read_samples
from imagen.prep.parquet import read_parquet

FORMAT = 1  # raise it when what is seen or how changes: every shard is then looked at again

SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "reason": pa.string(),  # null: kept, unless it is a duplicate
        "fault": pa.string(),  # the reason that no threshold changes
        "suffix": pa.string(),
        "fixed": pa.bool_(),  # the bytes must be written anew
        "width": pa.int32(),  # of the upright picture
        "height": pa.int32(),
        "original": pa.int32(),  # short side before img2dataset resized it
        "spread": pa.float32(),
        "phash": pa.binary(8),
        "colours": pa.binary(12),
        "caption": pa.binary(8),  # a hash
        "caption_length": pa.int32(),
        "sha256": pa.binary(32),  # of the stored bytes
        "info": pa.string(),  # scores and short words of the json
    }
)
_LONGEST_WORD = 32  # of the json's strings, those that may be a language or a verdict: no captions, URLs and hashes
_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Mark:
    """What a table was made from, and what is in it: ``content`` is a digest of all that later phases depend on."""

    source: str
    rules: str
    content: str
    count: int


@dataclass(frozen=True)
class Look:
    """A shard's name into its table in ``reports``; called in the workers. ``ruled`` is the digest of ``rules``."""

    folder: Location
    reports: Location
    rules: Rules
    ruled: str

    def mark(self, shard: str) -> Mark | None:
        """The mark of a shard's table if it was made of this very shard by these very rules."""
        mark = read_mark(table_path(self.reports, shard))
        if mark is None or (mark.rules, mark.source) != (self.ruled, source_of(self.folder / f"{shard}.tar")):
            return None
        return mark

    def __call__(self, shard: str) -> None:
        tar, path = self.folder / f"{shard}.tar", table_path(self.reports, shard)
        source, mark = source_of(tar), read_mark(path)
        if mark is not None and mark.source == source:
            rows = read_rows(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, on odd tags and on many pixels
                rows = [see(sample) for sample in read_samples(tar)]
        for row in rows:
            row["reason"] = self.rules.reason(row | {"info": json.loads(row["info"])})
        write_rows(path, rows, source, self.ruled)


def see(sample: Sample) -> dict[str, Any]:
    """The row of one sample, without its reason."""
    caption = " ".join(sample.caption.split())
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names) | {
        "key": sample.key.encode(errors="replace").decode(),
        "fault": sample.fault,
        "fixed": False,
        "caption": hashlib.sha256(caption.casefold().encode(errors="replace")).digest()[:8],
        "caption_length": len(caption),
        "sha256": hashlib.sha256(sample.picture).digest(),
        "info": json.dumps(scores(sample.info, depth=3), ensure_ascii=False),
    }
    if sample.fault is not None:
        return row
    try:
        opened = open_upright(sample.picture, sample.orientation)
    except Unusable as error:
        return row | {"fault": str(error)}
    width, height = opened.picture.size
    return row | {
        "suffix": opened.suffix,
        "fixed": opened.fixed,
        "width": width,
        "height": height,
        "original": original_side(sample.info, min(width, height)),
        **vars(looks(opened.picture)),
    }


def original_side(info: dict[str, Any], side: int) -> int:
    """The short side of the picture that was downloaded, where the json tells; else ``side``."""
    sides = [info.get("original_width"), info.get("original_height")]
    known = [value for value in sides if isinstance(value, int) and 0 < value <= _INT32]
    return min(known) if len(known) == len(sides) else side


def scores(info: dict[str, Any], depth: int) -> dict[str, Any]:
    """The numbers and short words of a json, also those within its objects."""
    kept: dict[str, Any] = {}
    for name, value in info.items():
        if isinstance(value, dict) and depth > 1:
            kept[name] = scores(value, depth - 1)
        elif isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _LONGEST_WORD):
            kept[name] = value
    return kept


def table_path(reports: Location, shard: str) -> Location:
    """Where a shard's table lies."""
    return reports / f"{shard}.parquet"


def source_of(tar: Location) -> str:
    """A digest of a shard, as its stats know it."""
    return source_digest(tar)[:16]


def digest(value: Any) -> str:
    """16 hex digits that tell one JSON value from another."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def write_rows(path: Location, rows: list[dict[str, Any]], source: str, rules: str) -> None:
    """Write a shard's table with its mark."""
    content = digest([[row[name] for name in ("key", "reason", "fixed", "width", "height")] for row in rows])
    mark = {"format": FORMAT, "source": source, "rules": rules, "content": content}
    table = pa.Table.from_pylist(rows, SCHEMA).replace_schema_metadata({"imagen": json.dumps(mark)})
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_mark(path: Location) -> Mark | None:
    """A table's mark; None where there is none, or one of another format."""
    try:
        with path.open("rb") as file:
            about = pq.read_metadata(file)
            mark = json.loads((about.metadata or {})[b"imagen"])
            written = mark.pop("format")
            return Mark(**mark, count=about.num_rows) if written == FORMAT else None
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, ValueError, TypeError):
        return None


def read_rows(path: Location, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a table."""
    with path.open("rb") as file:
        return read_parquet(file, columns).to_pylist()


def read_columns(path: Location, columns: list[str]) -> Iterator[Any]:
    """Some columns of a table, each as a pyarrow array."""
    with path.open("rb") as file:
        table = read_parquet(file, columns)
    return (table[name] for name in columns)
