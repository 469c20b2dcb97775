"""Any sample by its row, whatever befell the tars."""

import errno
import itertools
import json
import os
import pickle
import random
import tarfile
from pathlib import Path

import pytest
import small_set
from upath import UPath

from imagen.data import access
from imagen.data.access import ReadSamples
from imagen.data.index import PICTURE_FIELDS, TEXT_FIELDS, scan, write_index
from imagen.data.reader import Decode, Raw
from imagen.data.shards import ENCODER_MEMBER, write_tar
from imagen.data.stream import Crop, Sample, Shard

COUNT = 8
FINGERPRINT = small_set.ENCODER.fingerprint()
DECODE = Decode(8, 8, False, 0, Crop(None, False, 0), False)


def shard(folder, images=None, texts=None, count: int = COUNT) -> Shard:
    write_tar(folder / "images.tar", small_set.image_members(range(COUNT)) if images is None else images)
    write_tar(folder / "text.tar", small_set.text_members(range(COUNT)) if texts is None else texts)
    return Shard(folder / "images.tar", folder / "text.tar", count)


def read(made: Shard, rows=range(COUNT)) -> list[Raw]:
    return ReadSamples(FINGERPRINT)([(made, row) for row in rows])


def sample(raw: Raw) -> Sample | str:
    """What a loader makes of it, and proof that its parts belong together; or why it is unfit."""
    try:
        made = DECODE.sample(0, raw)
    except ValueError as error:
        return str(error)
    number = small_set.number_of(made.image.transpose(2, 0, 1))
    assert raw.key == f"{number:05}"
    assert made.caption == small_set.caption(number)
    return made


def fit(raws: list[Raw]) -> list[str]:
    return [raw.key for raw in raws if isinstance(sample(raw), Sample)]


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("url", [None, "memory://access"])
def test_rows_in_any_order_from_any_place(tmp_path: Path, indexed: bool, url: str | None):
    made = shard(tmp_path if url is None else UPath(f"{url}/{indexed}"))
    if indexed:
        write_index(made.images, scan(made.images, PICTURE_FIELDS))
        write_index(made.text, scan(made.text, TEXT_FIELDS))
    assert fit(read(made, [5, 0, 7, 5])) == ["00005", "00000", "00007", "00005"]


def test_rows_of_several_shards_keep_their_order(tmp_path: Path):
    shards = [shard(tmp_path / name) for name in "ab"]
    (tmp_path / "a").mkdir(exist_ok=True)
    wanted = [(shards[i % 2], row) for i, row in enumerate((3, 1, 0, 7, 2))]
    raws = ReadSamples(FINGERPRINT)(wanted)
    assert [(Path(raw.shard).parent.name, int(raw.key)) for raw in raws] == [
        (made.images.parent.name, row) for made, row in wanted
    ]


def test_few_shards_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(access, "OPEN_SHARDS", 3)
    shards = [shard(tmp_path / str(i)) for i in range(6)]
    reading = ReadSamples(FINGERPRINT)
    assert [raw.key for raw in reading([(made, i) for i, made in enumerate(shards)])] == [f"{i:05}" for i in range(6)]
    assert len(reading._open) == 3


def test_it_travels_to_a_worker_with_nothing_open(tmp_path: Path):
    made = shard(tmp_path)
    reading = ReadSamples(FINGERPRINT)
    reading([(made, 0)])
    assert fit(pickle.loads(pickle.dumps(reading))([(made, 1)])) == ["00001"]


@pytest.mark.parametrize("seed", range(3))
def test_halves_are_joined_by_key(tmp_path: Path, seed: int):
    rng = random.Random(seed)
    encoder, *texts = small_set.text_members(range(COUNT))
    rng.shuffle(texts)
    made = shard(tmp_path, texts=[encoder, *texts[1:]])
    lost = texts[0][0].removesuffix(".safetensors")
    assert fit(read(made)) == [f"{i:05}" for i in range(COUNT) if f"{i:05}" != lost]
    assert sample(read(made, [int(lost)])[0]) == "no text embedding"


def test_without_a_sidecar_there_are_no_tokens(tmp_path: Path):
    (raw,) = ReadSamples(None)([(Shard(shard(tmp_path).images, None, COUNT), 2)])
    assert raw.tokens is None
    assert raw.fault is None


def test_a_sidecar_of_another_encoder_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    _, *texts = small_set.text_members(range(COUNT))
    made = shard(tmp_path, texts=[(ENCODER_MEMBER, json.dumps(FINGERPRINT | {"width": 9}).encode()), *texts])
    assert [sample(raw) for raw in read(made)] == ["no text embedding"] * COUNT
    assert "another encoder" in caplog.text


@pytest.mark.parametrize("indexed", [False, True])
def test_a_tar_cut_anywhere_loses_only_what_was_cut(tmp_path: Path, indexed: bool):
    made = shard(tmp_path)
    if indexed:
        write_index(made.images, scan(made.images, PICTURE_FIELDS))
    whole = made.images.read_bytes()
    with tarfile.open(made.images) as archive:
        ends = [archive.getmember(f"{i:05}.txt") for i in range(COUNT)]
    for cut in range(0, len(whole), 97):
        made.images.write_bytes(whole[:cut])
        raws = read(made)
        assert len(raws) == COUNT
        assert fit(raws) == [f"{i:05}" for i, end in enumerate(ends) if end.offset_data + end.size <= cut]


def test_flipped_bits_never_pass_for_another_sample(tmp_path: Path):
    made = shard(tmp_path)
    write_index(made.images, scan(made.images, PICTURE_FIELDS))
    whole = made.images.read_bytes()
    rng = random.Random(0)
    for _ in range(200):
        place, bit = rng.randrange(len(whole)), rng.randrange(8)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        made.images.write_bytes(damaged)
        raws = read(made)
        assert len(raws) == COUNT
        assert len(fit(raws)) >= COUNT - 1  # ``sample`` asserts that what is fit is itself


def test_a_read_that_fails_is_the_samples_own_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = shard(tmp_path)
    reading = ReadSamples(FINGERPRINT)
    reading([(made, 0)])

    def fail(*_: object) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "pread", fail)
    (raw,) = reading([(made, 1)])
    assert sample(raw) == "the tar cannot be read ([Errno 116] Stale file handle)"


def test_an_index_of_another_tar_is_found_out(tmp_path: Path):
    made = shard(tmp_path)
    write_index(made.images, scan(made.images, PICTURE_FIELDS))
    images = [small_set.image_members(range(i, i + 1)) for i in range(COUNT)]
    write_tar(made.images, itertools.chain(*reversed(images)))
    assert {sample(raw) for raw in read(made)[:3]} == {"the tar is damaged, or not the one that was indexed"}


def test_a_shard_that_vanished_gives_samples_that_say_so(tmp_path: Path):
    made = shard(tmp_path)
    made.images.unlink()
    assert [sample(raw) for raw in read(made)] == ["the shard cannot be read"] * COUNT


def test_names_lead_nowhere(tmp_path: Path):
    names = ["../../up", "/etc/passwd", "a/../b", "x" * 80, "y" * 150, "d/" * 60 + "z", "häuser"]
    images = []
    for i, name in enumerate(names):
        images += [(f"{name}.png", small_set.picture(i)), (f"{name}.txt", small_set.caption(i).encode())]
    encoder, *texts = small_set.text_members(range(len(names)))
    texts = [(f"{name}.safetensors", content) for name, (_, content) in zip(names, texts, strict=True)]
    raws = read(shard(tmp_path, images, [encoder, *texts], len(names)), range(len(names)))
    assert [raw.key for raw in raws] == names
    assert all(DECODE.sample(0, raw).caption == small_set.caption(i) for i, raw in enumerate(raws))


def test_fewer_samples_than_promised_are_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    made = shard(tmp_path, count=COUNT + 2)
    assert [sample(raw) for raw in read(made, [COUNT, COUNT + 1])] == ["the tar is damaged"] * 2
    assert f"has {COUNT} samples, its _stats.json says {COUNT + 2}" in caplog.text


def test_empty_members_are_there(tmp_path: Path):
    images = [(name, b"" if name.endswith(".txt") else content) for name, content in small_set.image_members(range(2))]
    raws = ReadSamples(None)([(Shard(shard(tmp_path, images, count=2).images, None, 2), row) for row in range(2)])
    assert [raw.caption for raw in raws] == [b"", b""]
