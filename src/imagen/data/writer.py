"""Write shards of captioned pictures as img2dataset writes them, and know which need no writing again.

A tar of ``key.json key.png key.txt``, a parquet with a row per picture, and last a ``_stats.json``: the mark of a whole
shard. Beside img2dataset's counts the stats say how it was made (``recipe``) and of how many it is one (``shards``).
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagen.data.shards import stats_path, write_tar
from imagen.errors import UserError
from imagen.files import atomic_write, write_json

INTEGERS = ("width", "height", "original_width", "original_height")


def shard_key(shard: int, index: int, shard_size: int) -> str:
    """img2dataset's key: the shard in 5 digits, then the index in as many as ``shard_size`` pictures need."""
    return f"{shard:05}{index:0{len(str(shard_size - 1))}}"


def sample_row(key: str, caption: str, size: tuple[int, int], original: tuple[int, int], sha256: str) -> dict[str, Any]:
    """img2dataset's fields of a sample, in its order; sizes are (width, height), ``sha256`` is the source file's."""
    fields = {"caption": caption, "url": None, "key": key, "status": "success", "error_message": None}
    sizes = {"width": size[0], "height": size[1], "original_width": original[0], "original_height": original[1]}
    return fields | sizes | {"exif": "{}", "sha256": sha256}


def write_shard(
    tar: Path, rows: list[dict[str, Any]], pngs: list[bytes], *, started: float, recipe: dict[str, Any], shards: int
) -> None:
    """Write the tar, the parquet and then the stats; ``started`` is when the work on it began, by ``time.time()``."""
    stats_path(tar).unlink(missing_ok=True)
    write_tar(tar, _members(rows, pngs))
    _write_parquet(tar.with_suffix(".parquet"), rows)
    count = len(rows)
    counts = {"count": count, "successes": count, "failed_to_download": 0, "failed_to_resize": 0}
    times = {"duration": time.time() - started, "start_time": started, "end_time": time.time()}
    ours = {"status_dict": {"success": count}, "recipe": recipe, "shards": shards}
    write_json(stats_path(tar), counts | times | ours)


def _members(rows: list[dict[str, Any]], pngs: list[bytes]) -> Iterator[tuple[str, bytes]]:
    for row, png in zip(rows, pngs, strict=True):
        yield f"{row['key']}.json", json.dumps(row, indent=4, ensure_ascii=False).encode()
        yield f"{row['key']}.png", png
        yield f"{row['key']}.txt", row["caption"].encode()


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    types = {name: pyarrow.int32() if name in INTEGERS else pyarrow.string() for name in rows[0]}
    types |= {name: pyarrow.list_(pyarrow.string()) for name, value in rows[0].items() if isinstance(value, list)}
    table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(list(types.items())))
    with atomic_write(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def _stats(tar: Path) -> dict[str, Any]:
    """The stats of a shard, empty where it is not whole; UserError where something else wrote it."""
    if not stats_path(tar).exists():
        return {}
    stats = json.loads(stats_path(tar).read_text())
    if "recipe" not in stats:
        raise UserError(f"{tar} was written by another program and would be overwritten: choose another, root=<folder>")
    return stats if tar.exists() and tar.with_suffix(".parquet").exists() else {}


def is_whole(tar: Path, recipe: dict[str, Any]) -> bool:
    """Whether the shard is there and was made by this recipe."""
    return _stats(tar).get("recipe") == recipe


def all_whole(folder: Path, recipe: dict[str, Any]) -> bool:
    """Whether every shard of the folder is there by this recipe; the first one says how many there are."""
    shards = _stats(folder / "00000.tar").get("shards", 0)
    return shards > 0 and all(is_whole(folder / f"{i:05}.tar", recipe) for i in range(shards))


def remove_surplus(folder: Path, shards: int) -> None:
    """Remove shards of an earlier, larger set, so that they are not read along with the new ones."""
    for tar in folder.glob("*.tar"):
        if tar.stem.isdigit() and int(tar.stem) >= shards and _stats(tar):
            stats_path(tar).unlink()
            tar.with_suffix(".parquet").unlink()
            tar.unlink()
