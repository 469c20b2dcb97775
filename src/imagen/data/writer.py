"""Write shards of captioned pictures as img2dataset writes them, and know which need no writing again.

A tar of ``key.json key.<format> key.txt``, a parquet with a row per picture, an index of the tar, and last a
``_stats.json``: the mark of a whole shard. Beside img2dataset's counts the stats say how it was made (``recipe``), of
how many it is one (``shards``) and the tar's SHA-256.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from imagen.data.index import PICTURE_FIELDS, index_of, index_path, write_index
from imagen.data.shards import stats_path, write_tar
from imagen.errors import UserError
from imagen.files import Location, atomic_write, names_in, write_json

INTEGERS = ("width", "height", "original_width", "original_height")


@dataclass(frozen=True)
class Entry:
    """One sample to write: its json, which holds its ``key`` and ``caption``, and its picture encoded as ``suffix``."""

    row: dict[str, Any]
    picture: bytes
    suffix: str


def shard_key(shard: int, index: int, shard_size: int) -> str:
    """img2dataset's key: the shard in 5 digits, then the index in as many as ``shard_size`` pictures need."""
    return f"{shard:05}{index:0{len(str(shard_size - 1))}}"


def sample_row(
    key: str, caption: str | None, size: tuple[int, int], original: tuple[int, int], sha256: str
) -> dict[str, Any]:
    """img2dataset's fields of a sample, in its order; sizes are (width, height), ``sha256`` is the source file's."""
    fields = {"caption": caption, "url": None, "key": key, "status": "success", "error_message": None}
    sizes = {"width": size[0], "height": size[1], "original_width": original[0], "original_height": original[1]}
    return fields | sizes | {"exif": "{}", "sha256": sha256}


def write_shard(
    tar: Location,
    entries: Iterable[Entry],
    *,
    started: float,
    recipe: dict[str, Any],
    shards: int,
    dropped: Sequence[dict[str, Any]] = (),
    more: dict[str, Any] = {},  # noqa: B006 - never changed
) -> None:
    """Write the tar, the parquet, the index and then the stats; ``started`` is by ``time.time()``.

    ``entries`` are written as they come, so that a shard need not fit into memory. ``dropped`` are the rows of the
    samples left out, looked at once the entries are through: each says why in its ``error_message``. ``more`` joins
    the stats.
    """
    stats_path(tar).unlink(missing_ok=True)
    rows: list[dict[str, Any]] = []
    written = write_tar(tar, _members(entries, rows))
    write_parquet(tar.with_suffix(".parquet"), [*rows, *dropped])
    write_index(tar, index_of(written.members, PICTURE_FIELDS))
    reasons = Counter(row["error_message"] for row in dropped)
    counts = {"count": len(rows) + len(dropped), "successes": len(rows)}
    failures = {"failed_to_download": 0, "failed_to_resize": 0}
    times = {"duration": time.time() - started, "start_time": started, "end_time": time.time()}
    ours = {"status_dict": {"success": len(rows), **reasons}, "recipe": recipe, "shards": shards}
    write_json(stats_path(tar), counts | failures | times | ours | {"sha256": written.sha256} | more)


def _members(entries: Iterable[Entry], rows: list[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    for entry in entries:
        key = entry.row["key"]
        rows.append(entry.row)
        yield f"{key}.json", json.dumps(entry.row, indent=4, ensure_ascii=False).encode()
        yield f"{key}.{entry.suffix}", entry.picture
        yield f"{key}.txt", (entry.row["caption"] or "").encode()


def write_parquet(path: Location, rows: Sequence[dict[str, Any]]) -> None:
    """A row a sample; rows need not have the same columns. What no column can hold is written as JSON."""
    import pyarrow
    import pyarrow.parquet

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _column(name, [row.get(name) for row in rows]) for name in names}
    with atomic_write(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(columns), temporary)


def _column(name: str, values: list[Any]) -> Any:
    import pyarrow

    kind = pyarrow.int32() if name in INTEGERS else None
    if all(value is None for value in values):
        kind = kind or pyarrow.string()
    parts = (part for value in values for part in (value if isinstance(value, list) else [value]))
    try:
        if not any(isinstance(part, dict) for part in parts):  # of which parquet cannot hold empty ones
            return pyarrow.array(values, kind)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError):
        pass
    return pyarrow.array([None if value is None else json.dumps(value, ensure_ascii=False) for value in values])


def read_stats(tar: Location) -> dict[str, Any]:
    """What ``_stats.json`` says of ``tar``; empty where there is none, or what is there is none."""
    try:
        stats = json.loads(stats_path(tar).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return stats if isinstance(stats, dict) else {}


def own_stats(tar: Location, script: str | None) -> dict[str, Any]:
    """The stats of a shard, empty where it is not whole. Raises: UserError where another than ``script`` wrote it."""
    stats = read_stats(tar)
    recipe = stats.get("recipe")
    if stats and not (isinstance(recipe, dict) and recipe.get("script") == script):
        raise UserError(f"{tar} was written by another program and would be overwritten: give another folder")
    return stats if stats and tar.exists() and tar.with_suffix(".parquet").exists() else {}


def whole_stats(tar: Location, recipe: dict[str, Any]) -> dict[str, Any]:
    """The stats of a shard made by this recipe, empty where it is not there or of another making.

    Raises: UserError where another program wrote it.
    """
    stats = own_stats(tar, recipe.get("script"))
    return stats if stats.get("recipe") == recipe else {}


def is_whole(tar: Location, recipe: dict[str, Any]) -> bool:
    """Whether the shard is there and was made by this recipe."""
    return bool(whole_stats(tar, recipe))


def all_whole(folder: Location, recipe: dict[str, Any]) -> bool:
    """Whether every shard of the folder is there by this recipe; the first one says how many there are."""
    shards = whole_stats(folder / "00000.tar", recipe).get("shards", 0)
    return shards > 0 and all(is_whole(folder / f"{i:05}.tar", recipe) for i in range(shards))


def say_shards(tar: Location, stats: dict[str, Any], shards: int) -> None:
    """Of a shard that stays as it is, let the stats say of how many it is one now."""
    if stats["shards"] != shards:
        write_json(stats_path(tar), stats | {"shards": shards})


def source_digest(tar: Location) -> str:
    """What changes when a shard was written anew with other content: its SHA-256 as its stats say, or theirs."""
    content = stats_path(tar).read_bytes()
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(content)["sha256"])
    return hashlib.sha256(content).hexdigest()


def shard_names(shards: int) -> set[str]:
    """The tars of a set of so many."""
    return {f"{number:05}.tar" for number in range(shards)}


def remove_surplus(folder: Location, names: Collection[str], script: str | None) -> None:
    """Remove the shards of an earlier set that are not among ``names``, so that they are not read along with the new.

    Raises: UserError where another than ``script`` wrote one.
    """
    there = names_in(folder)
    surplus = [folder / name for name in sorted(there.difference(names)) if name.endswith(".tar")]
    for tar in surplus:
        if stats_path(tar).name in there and own_stats(tar, script):
            stats_path(tar).unlink()
            for path in (tar.with_suffix(".parquet"), index_path(tar), tar):
                path.unlink(missing_ok=True)
