"""Where the samples of a tar lie."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import small_set
from upath import UPath

from imagen.data.index import PICTURE_FIELDS, TEXT_FIELDS, index_of, index_path, read_index, scan, write_index
from imagen.data.shards import write_tar
from imagen.errors import UserError


def written(folder, members=None):
    tar = folder / "00000.tar"
    write_tar(tar, small_set.image_members(range(5)) if members is None else members)
    return tar


def test_every_field_is_where_the_index_says(tmp_path: Path):
    tar = written(tmp_path)
    content, index = tar.read_bytes(), scan(tar, PICTURE_FIELDS)
    members = dict(small_set.image_members(range(5)))
    assert index["key"].tolist() == [f"{i:05}".encode() for i in range(5)]
    for row in index:
        for field, suffix in (("picture", "png"), ("caption", "txt"), ("info", "json")):
            offset, size = row[field]["offset"], row[field]["size"]
            assert content[offset : offset + size] == members[f"{row['key'].decode()}.{suffix}"]


ODD = [("a" * 200 + ".jpg", b"long"), ("naïve.jpg", b"x" * 1025), ("naïve.txt", b""), ("b.json", b"{}")]


@pytest.mark.parametrize("members", [small_set.image_members(range(5)), ODD, []], ids=["plain", "odd names", "none"])
@pytest.mark.parametrize("url", [None, "memory://index"])
def test_a_written_index_is_the_scanned_one(tmp_path: Path, url: str | None, members: small_set.Members):
    tar = (tmp_path if url is None else UPath(url) / f"{len(members)}") / "00000.tar"
    made = write_tar(tar, members)
    scanned = read_index(tar, PICTURE_FIELDS)  # none is there yet
    write_index(tar, index_of(made.members, PICTURE_FIELDS))
    assert index_path(tar).name == "00000_index.npy"
    assert np.array_equal(read_index(tar, PICTURE_FIELDS), scanned)


def test_what_is_no_field_is_left_out_and_what_is_missing_is_empty(tmp_path: Path):
    tar = written(tmp_path, [("a.pickle", b"x"), ("b.png", b"xx"), ("b.pyd", b"y"), ("c/d.v1.TXT", b"z"), ("e", b"")])
    index = scan(tar, PICTURE_FIELDS)
    assert index["key"].tolist() == [b"b", b"c/d.v1"]
    assert index["picture"]["size"].tolist() == [2, 0]
    assert index["picture"]["offset"].tolist() == [1536, 0]
    assert index["caption"]["size"].tolist() == [0, 1]


def test_an_empty_tar_and_a_sidecar(tmp_path: Path):
    assert len(scan(written(tmp_path, []), PICTURE_FIELDS)) == 0
    tar = written(tmp_path, small_set.text_members(range(3)))
    assert scan(tar, TEXT_FIELDS)["key"].tolist() == [b"00000", b"00001", b"00002"]


def test_a_damaged_tar_is_indexed_up_to_its_damage(tmp_path: Path):
    tar = written(tmp_path)
    with tarfile.open(tar) as archive:
        offset = archive.getmember("00003.json").offset
    tar.write_bytes(tar.read_bytes()[: offset + 100])
    assert len(scan(tar, PICTURE_FIELDS)) == 3


@pytest.mark.parametrize("content", [b"", b"no array", b"\x80\x04K\x01."])
def test_a_damaged_index_is_named(tmp_path: Path, content: bytes):
    tar = written(tmp_path)
    index_path(tar).write_bytes(content)
    with pytest.raises(UserError, match=r"00000_index.npy is damaged .*remove it"):
        read_index(tar, PICTURE_FIELDS)
    write_index(tar, scan(tar, PICTURE_FIELDS))
    with pytest.raises(UserError, match=r"00000_index.npy is no index of \['tokens'\]"):
        read_index(tar, TEXT_FIELDS)
