"""The folder contract: names, hashes, tars, and finding the sidecars that fit an encoder."""

import errno
import hashlib
import io
import json
import tarfile
from contextlib import suppress

import pytest
import torch

from imagen.data import shards
from imagen.data.index import PICTURE_FIELDS, scan
from imagen.data.reader import read_shard
from imagen.data.shards import read_captions, walk, write_tar
from imagen.data.stream import Shard
from imagen.data.tokens import dump_tokens
from imagen.errors import UserError
from imagen.text_encoder import Hash, fingerprint8

ENCODER = Hash(name="hash", width=4, max_length=8)


def sidecar(root, split="train", encoder=ENCODER, **changed):
    """Write one sidecar tar by ``encoder``, its fingerprint changed."""
    fingerprint = encoder.fingerprint() | changed
    folder = shards.text_folder(root, split, encoder.name, fingerprint)
    member = dump_tokens(torch.ones(2, encoder.width), "a cat")
    shards.write_tar(
        folder / "00000.tar", [("_encoder.json", json.dumps(fingerprint).encode()), ("k.safetensors", member)]
    )
    return folder


def test_names_of_the_contract(tmp_path):
    assert shards.images_folder("data/x", "val", 64).as_posix() == "data/x/val/images-64"
    fingerprint = ENCODER.fingerprint()
    assert shards.text_folder("d", "train", "hash", fingerprint).name == f"text-hash-{fingerprint8(fingerprint)}"
    assert shards.text_folder("d", "train", "hash", fingerprint, "int8").name.endswith("-int8")
    assert shards.stats_path(tmp_path / "00012.tar").name == "00012_stats.json"


def test_whole_shards_are_those_with_stats(tmp_path):
    for name in ("00001.tar", "00000.tar", "00002.tar", "00000_stats.json", "00001_stats.json"):
        (tmp_path / name).touch()
    assert [tar.name for tar in shards.whole_shards(tmp_path, skip_unfinished=True)] == ["00000.tar", "00001.tar"]
    with pytest.raises(UserError, match=r"1 unfinished.*00002\.tar"):
        shards.whole_shards(tmp_path, skip_unfinished=False)
    with pytest.raises(UserError, match="no whole shard"):
        shards.whole_shards(tmp_path / "nowhere", skip_unfinished=True)


def test_tars_keep_order_and_are_the_same_bytes_each_time(tmp_path):
    members = [("b.txt", b"second"), ("b.png", b"\x89"), ("a.txt", "naïve".encode())]
    for name in ("one.tar", "two.tar"):
        shards.write_tar(tmp_path / name, members)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert shards.read_captions(tmp_path / "one.tar") == {"b": "second", "a": "naïve"}
    assert list(shards.read_captions(tmp_path / "one.tar")) == ["b", "a"]


@pytest.mark.parametrize("sizes", [[], [0], [1, 511, 512, 513, 100_000], [8192]], ids=str)
def test_tars_are_those_of_tarfile_and_known_without_reading_them(tmp_path, sizes):
    members = [(f"{i}{'ä' * (i % 2)}.txt", b"x" * size) for i, size in enumerate(sizes)]
    theirs = io.BytesIO()
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o444
            tar.addfile(info, io.BytesIO(content))
    made = write_tar(tmp_path / "00000.tar", members)
    content = (tmp_path / "00000.tar").read_bytes()
    assert content == theirs.getvalue()
    assert (made.size, made.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert [(one.name, content[one.offset :][: one.size]) for one in made.members] == members


def test_a_tar_arrives_whole_or_not_at_all(tmp_path):
    def broken():
        yield "a.txt", b"fine"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write_tar(tmp_path / "00000.tar", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_tar_is_named(tmp_path):
    shards.write_tar(tmp_path / "00000.tar", [("a.txt", b"x" * 2000)])
    whole = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole[:700])
    with pytest.raises(UserError, match=r"00000\.tar is damaged"):
        shards.read_captions(tmp_path / "00000.tar")


def test_the_encoder_is_the_first_member(tmp_path):
    folder = sidecar(tmp_path)
    assert shards.read_encoder(folder / "00000.tar") == ENCODER.fingerprint()
    assert [key for key, _ in shards.read_members(folder / "00000.tar", ".safetensors")] == ["k"]
    with tarfile.open(folder / "00000.tar") as tar:
        assert tar.getnames()[0] == "_encoder.json"
    shards.write_tar(tmp_path / "other.tar", [("a.txt", b"x")])
    with pytest.raises(UserError, match="first member"):
        shards.read_encoder(tmp_path / "other.tar")
    (tmp_path / "none.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match="cannot be read"):
        shards.read_encoder(tmp_path / "none.tar")


def test_the_one_folder_that_fits_is_found(tmp_path):
    sidecar(tmp_path, max_length=99)
    sidecar(tmp_path, encoder=Hash(name="other", width=4, max_length=8))
    fits = sidecar(tmp_path)
    assert shards.find_text_folder(tmp_path, "train", ENCODER) == fits


def test_no_folder_names_the_command_and_several_ask_which(tmp_path):
    sidecar(tmp_path, dtype="bf16")
    with pytest.raises(UserError, match=rf"embed_text\.py root={tmp_path} text_encoder=hash"):
        shards.find_text_folder(tmp_path, "train", ENCODER)
    with pytest.raises(UserError, match="found: none"):
        shards.find_text_folder(tmp_path, "val", ENCODER)
    sidecar(tmp_path, weights="a")
    sidecar(tmp_path, weights="b")
    with pytest.raises(UserError, match="several text folders"):
        shards.find_text_folder(tmp_path, "train", ENCODER)


def hostile(**changed) -> bytes:
    """A tar of one good member and one whose header claims what it should not."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as tar:
        good = tarfile.TarInfo("0.txt")
        good.size = 4
        tar.addfile(good, io.BytesIO(b"good"))
        bad = tarfile.TarInfo("1.txt")
        for name, value in changed.items():
            setattr(bad, name, value)
        content.write(bad.tobuf(tarfile.PAX_FORMAT if bad.pax_headers else tarfile.GNU_FORMAT))
    return content.getvalue()


@pytest.mark.parametrize(
    "claim",
    [
        {"size": 2**40},
        {"size": 2**70},
        {"size": -5},
        {"pax_headers": {"GNU.sparse.map": "1,x", "GNU.sparse.major": "0"}},
        {"pax_headers": {"size": "nonsense"}},
    ],
    ids=str,
)
def test_what_a_header_claims_costs_nothing(tmp_path, claim):
    tar = tmp_path / "00000.tar"
    tar.write_bytes(hostile(**claim))
    names = []
    with suppress(UserError):  # damage is told; a large claim alone is passed over
        for member in walk(tar):
            names.append(member.name)
            member.read()
    assert names[0] == "0.txt"
    with suppress(UserError):
        assert read_captions(tar)["0"] == "good"
    assert scan(tar, PICTURE_FIELDS)["key"][0] == b"0"
    (first, *_) = read_shard(Shard(tar, None, 2), None)
    assert first.key in ("0", "#0")


def test_names_without_end_are_passed_over(tmp_path):
    tar = tmp_path / "00000.tar"
    write_tar(tar, [("x" * 100_000 + ".txt", b"long"), ("0.txt", b"good")])
    assert read_captions(tar) == {"0": "good"}
    assert scan(tar, PICTURE_FIELDS).dtype["key"].itemsize == 1


def test_a_disk_that_fails_is_no_damage(tmp_path, monkeypatch):
    tar = tmp_path / "00000.tar"
    write_tar(tar, [("0.txt", b"good"), ("1.txt", b"good")])
    read = io.BytesIO.read

    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 1000:
                raise OSError(errno.EIO, "Input/output error")
            return read(self, size)

    content = tar.read_bytes()
    monkeypatch.setattr(type(tar), "open", lambda self, mode: Failing(content))
    with pytest.raises(OSError, match="Input/output error") as stopped:
        read_captions(tar)
    assert stopped.value.filename == str(tar)


def test_samples_are_neighbours_of_one_key_and_what_is_too_large_is_none(tmp_path):
    tar = tmp_path / "00000.tar"
    write_tar(
        tar, [("a.jpg", b"xx"), ("a.pickle", b"y"), ("a.TXT", b"z"), ("b.txt", b"1"), ("b.txt", b"2"), ("a.txt", b"3")]
    )
    read = [("a", {"picture": None, "caption": b"z"}), ("b", {"caption": b"2"}), ("a", {"caption": b"3"})]
    assert list(shards.read_samples(tar, PICTURE_FIELDS, most=1)) == read
