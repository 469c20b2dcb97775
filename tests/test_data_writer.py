"""Shards as img2dataset writes them."""

import json
import tarfile

import pyarrow.parquet
import pytest

from imagen.data.shards import stats_path
from imagen.data.writer import (
    Entry,
    all_whole,
    is_whole,
    remove_surplus,
    sample_row,
    shard_key,
    shard_names,
    write_parquet,
    write_shard,
)
from imagen.errors import UserError

RECIPE = {"format": 1}


def row(i):
    fields = sample_row(shard_key(0, i, 100), f"caption {i}", (8, 6), (80, 60), "ab" * 32)
    return {"licence": "CC0", "captions": [f"caption {i}", "alias"], **fields}


def write(folder, shard=0, shards=1, recipe=RECIPE):
    entries = [Entry(row(0), b"png0", "png"), Entry(row(1), b"png1", "png")]
    write_shard(folder / f"{shard:05}.tar", entries, started=0.0, recipe=recipe, shards=shards)
    return folder / f"{shard:05}.tar"


@pytest.mark.parametrize(
    ("size", "key"), [(10_000, "000030007"), (1000, "00003007"), (200, "00003007"), (100, "0000307"), (1, "000037")]
)
def test_keys_are_img2datasets(size, key):
    assert shard_key(3, 7, size) == key


def test_members_fields_and_order(tmp_path):
    tar = write(tmp_path)
    with tarfile.open(tar) as archive:
        names = archive.getnames()
        info = json.load(archive.extractfile(names[0]))
    assert names == [f"000000{i}.{extension}" for i in (0, 1) for extension in ("json", "png", "txt")]
    fields = "licence captions caption url key status error_message width height original_width original_height"
    assert list(info) == [*fields.split(), "exif", "sha256"]
    assert info == row(0)
    assert info["status"] == "success"
    assert info["url"] is None
    assert info["error_message"] is None


def test_the_parquet_has_the_jsons_columns(tmp_path):
    table = pyarrow.parquet.read_table(write(tmp_path).with_suffix(".parquet"))
    assert table.to_pylist() == [row(0), row(1)]
    assert str(table.schema.field("width").type) == "int32"


def test_the_stats_come_last_and_mark_the_shard(tmp_path):
    tar = write(tmp_path)
    stats = json.loads(stats_path(tar).read_text())
    fields = "count successes failed_to_download failed_to_resize duration start_time end_time status_dict"
    assert set(fields.split()) < set(stats)
    assert stats["successes"] == 2
    assert is_whole(tar, RECIPE)
    assert not is_whole(tar, {"format": 2})
    tar.with_suffix(".parquet").unlink()
    assert not is_whole(tar, RECIPE)


def test_a_folder_is_whole_when_all_its_shards_are(tmp_path):
    assert not all_whole(tmp_path, RECIPE)
    write(tmp_path, 0, shards=2)
    assert not all_whole(tmp_path, RECIPE)
    write(tmp_path, 1, shards=2)
    assert all_whole(tmp_path, RECIPE)


def test_surplus_shards_go_and_foreign_ones_are_refused(tmp_path):
    for shard in range(3):
        write(tmp_path, shard, shards=3)
    remove_surplus(tmp_path, shard_names(1), None)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["00000.parquet", "00000.tar", "00000_index.npy", "00000_stats.json"]
    stats_path(tmp_path / "00000.tar").write_text('{"count": 2, "successes": 2}')
    with pytest.raises(UserError, match="another program"):
        is_whole(tmp_path / "00000.tar", RECIPE)


def test_what_no_column_can_hold_is_written_as_json(tmp_path):
    rows = [row(0) | {"hash": 2**70, "mixed": 1}, row(1) | {"hash": 1, "mixed": "one"}]
    entries = [Entry(one, b"png", "png") for one in rows]
    write_shard(tmp_path / "00000.tar", entries, started=0.0, recipe=RECIPE, shards=1)
    columns = pyarrow.parquet.read_table(tmp_path / "00000.parquet").to_pydict()
    assert columns["hash"] == [str(2**70), "1"]
    assert columns["mixed"] == ["1", '"one"']


def test_objects_are_columns_of_json(tmp_path):
    odd = [{"a": {}, "b": [{}], "c": [1, 2]}, {"a": {"x": {}}, "b": None, "c": []}]
    write_parquet(tmp_path / "0.parquet", odd)
    columns = pyarrow.parquet.read_table(tmp_path / "0.parquet").to_pydict()
    assert columns == {"a": ["{}", '{"x": {}}'], "b": ["[{}]", None], "c": [[1, 2], []]}
