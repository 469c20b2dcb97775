import io
import itertools
import json
import pickle
import random
import re
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import small_set
import torch
from PIL import Image

from imagen.data import reader
from imagen.data.reader import Decode, Raw
from imagen.data.shards import write_tar
from imagen.data.stream import Crop, Fault, Sample, Shard
from imagen.data.tokens import caption_hash, dump_tokens

FINGERPRINT = small_set.ENCODER.fingerprint()


def shard(folder: Path, images: small_set.Members, texts: small_set.Members, count: int) -> Shard:
    write_tar(folder / "images.tar", images)
    write_tar(folder / "text.tar", texts)
    return Shard(folder / "images.tar", folder / "text.tar", count)


def small(folder: Path, count: int = 6) -> Shard:
    return shard(folder, small_set.image_members(range(count)), small_set.text_members(range(count)), count)


def read(made: Shard) -> list[Raw]:
    return list(reader.read_shard(made, FINGERPRINT))


def decode(raw: Raw, resolution: int = 8, random_crop: bool = False, epoch: int = 0) -> Sample | Fault:
    stage = Decode(resolution, 8, random_crop, 0, Crop(resolution, False, 0), False)
    try:
        return stage.sample(epoch, raw)
    except ValueError as error:
        return Fault(raw.shard, raw.key, str(error))


def fits(raw: Raw) -> bool:
    """The picture, the caption and the tokens speak of the same sample."""
    sample = decode(raw)
    assert isinstance(sample, Sample)
    return small_set.caption(small_set.number_of(sample.image.transpose(2, 0, 1))) == sample.caption


def raw(number: int = 3, size: int = 8, **changed) -> Raw:
    tokens = dict(small_set.text_members(range(number, number + 1)))[f"{number:05}.safetensors"]
    words = small_set.caption(number).encode()
    made = Raw("shard", f"{number:05}", small_set.picture(number, size), words, b"{}", tokens)
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def test_a_shard_in_order(tmp_path: Path):
    raws = read(small(tmp_path))
    assert [raw.key for raw in raws] == [f"{i:05}" for i in range(6)]
    assert all(map(fits, raws))


@pytest.mark.parametrize("seed", range(4))
def test_halves_are_joined_by_key_in_any_order(tmp_path: Path, seed: int):
    rng = random.Random(seed)
    images = [small_set.image_members(range(i, i + 1)) for i in range(20)]
    encoder, *texts = small_set.text_members(range(20))
    rng.shuffle(images)
    rng.shuffle(texts)
    raws = read(shard(tmp_path, list(itertools.chain(*images)), [encoder, *texts], 20))
    assert sorted(raw.key for raw in raws) == [f"{i:05}" for i in range(20)]
    assert all(map(fits, raws))


def test_a_gap_in_either_tar_shifts_nothing(tmp_path: Path):
    images = [member for member in small_set.image_members(range(8)) if not member[0].startswith("00002")]
    texts = [member for member in small_set.text_members(range(8)) if not member[0].startswith("00005")]
    raws = read(shard(tmp_path, images, texts, 7))
    assert sorted(raw.key for raw in raws) == [f"{i:05}" for i in (0, 1, 3, 4, 5, 6, 7)]
    assert [raw.key for raw in raws if raw.tokens is None] == ["00005"]
    assert all(fits(raw) for raw in raws if raw.tokens is not None)


def test_tars_in_step_are_not_held_in_memory():
    pictures = (Raw("shard", str(i), bytes(100_000)) for i in range(500))
    texts = ((str(i), bytes(100_000)) for i in range(500) if i != 3)  # one missing, so never quite in step again
    tracemalloc.start()
    assert sum(1 for _ in reader.join(pictures, texts)) == 500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_keys_may_hold_dots_and_folders(tmp_path: Path):
    names = ["photo.v1", "photo.v2", "a/b.c/photo"]
    images = [
        (f"{name}.{extension}", content)
        for i, name in enumerate(names)
        for extension, content in (("PNG", small_set.picture(i)), ("txt", small_set.caption(i).encode()))
    ]
    encoder, *texts = small_set.text_members(range(3))
    renamed = [(f"{name}.safetensors", content) for name, (_, content) in zip(names, texts, strict=True)]
    raws = read(shard(tmp_path, images, [encoder, *renamed], 3))
    assert [raw.key for raw in raws] == names
    assert all(map(fits, raws))


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle of the data was run",)


def test_pickles_in_a_tar_are_never_looked_into(tmp_path: Path):
    bomb = pickle.dumps(Bomb())
    images = []
    for i in range(3):
        images += [(f"{i:05}.{ending}", bomb) for ending in ("pickle", "pkl", "pyd", "pth", "pt", "npy", "t5.pkl")]
        images += small_set.image_members(range(i, i + 1))
    texts = [member for i in range(3) for member in [(f"{i:05}.pth", bomb), (f"{i:05}.pickle", bomb)]]
    encoder, *good = small_set.text_members(range(3))
    raws = read(shard(tmp_path, images, [encoder, *texts, *good], 3))
    assert all(map(fits, raws))
    assert isinstance(decode(raw(tokens=bomb)), Fault)
    assert isinstance(decode(raw(picture=bomb)), Fault)


def test_links_and_folders_in_a_tar_are_passed_over(tmp_path: Path):
    made = small(tmp_path, 2)
    with tarfile.open(made.images, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("00009.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert [raw.key for raw in read(made)] == ["00000", "00001"]


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_what_a_damaged_tar_lost_is_counted(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture):
    made = small(tmp_path, 6)
    content = bytearray(made.images.read_bytes())
    with tarfile.open(made.images) as tar:
        member = tar.getmember("00002.png")
    if damage == "cut":
        made.images.write_bytes(content[: member.offset_data + 10])
    else:
        content[member.offset : member.offset + 512] = b"\xff" * 512
        made.images.write_bytes(content)
    raws = read(made)
    assert len(raws) == 6
    good = [raw for raw in raws if isinstance(decode(raw), Sample)]
    assert [raw.key for raw in good] == ["00000", "00001"]
    assert {raw.key for raw in raws} >= {"#3", "#4", "#5"}
    assert "it gave 2 of its 6 samples" in caplog.text


def test_no_more_samples_than_the_stats_promise(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    made = small(tmp_path, 6)
    assert len(read(Shard(made.images, made.text, 4))) == 4
    assert "more than its _stats.json says (4)" in caplog.text


def test_a_sidecar_of_another_encoder_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    made = small(tmp_path, 2)
    raws = list(reader.read_shard(made, FINGERPRINT | {"width": 9}))
    assert [raw.tokens for raw in raws] == [None, None]
    assert "another encoder" in caplog.text


def test_a_sample():
    sample = decode(raw(300))
    assert isinstance(sample, Sample)
    assert sample.key == "00300"
    assert small_set.number_of(sample.image.transpose(2, 0, 1)) == 300
    expected = small_set.ENCODER.encode([sample.caption]).tokens[0]
    torch.testing.assert_close(sample.tokens.float(), expected, atol=1e-3, rtol=1e-3)


def nan_tokens() -> bytes:
    return dump_tokens(torch.full((3, 8), torch.nan), small_set.caption(3))


def without_hash() -> bytes:
    import safetensors.torch

    return safetensors.torch.save({"tokens": torch.zeros(3, 8).half()})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"picture": None}, "no picture"),
        ({"picture": b"<html>"}, "cannot be decoded"),
        ({"picture": small_set.picture(3)[:45]}, "cannot be decoded"),
        ({"picture": small_set.picture(3, size=7)}, "7 x 7 is smaller than 8"),
        ({"caption": None}, "no caption"),
        ({"caption": b"picture 4"}, "another caption"),
        ({"caption": b"\xff\xfe"}, "another caption"),
        ({"tokens": None}, "no text embedding"),
        ({"tokens": b""}, "not a text embedding"),
        ({"tokens": b"\xff" * 100}, "not a text embedding"),
        ({"tokens": without_hash()}, "no caption hash"),
        ({"tokens": nan_tokens()}, "not finite"),
        ({"tokens": dump_tokens(torch.zeros(3, 9), small_set.caption(3))}, r"shape \(3, 9\)"),
        ({"tokens": dump_tokens(torch.zeros(0, 8), small_set.caption(3))}, r"shape \(0, 8\)"),
    ],
)
def test_unfit_samples_say_why(changed: dict, reason: str):
    fault = decode(raw(**changed))
    assert isinstance(fault, Fault)
    assert (fault.shard, fault.key) == ("shard", "00003")
    assert re.search(reason, fault.reason)


def test_captions_that_are_not_utf8_are_read_as_when_embedded():
    words = b"caf\xe9"
    tokens = dump_tokens(torch.zeros(2, 8), words.decode(errors="replace"))
    assert isinstance(decode(raw(caption=words, tokens=tokens)), Sample)
    assert caption_hash("caf\ufffd") == caption_hash(words.decode(errors="replace"))


def test_a_picture_larger_than_the_stage_is_shrunk():
    sample = decode(raw(size=32))
    assert isinstance(sample, Sample)
    assert sample.image.shape == (8, 8, 3)


def test_orientation_from_the_json():
    wide = io.BytesIO()
    two = Image.new("RGB", (16, 8), "red")
    two.paste(Image.new("RGB", (8, 8), "blue"), (8, 0))
    two.transpose(Image.Transpose.ROTATE_90).save(wide, "PNG")
    info = json.dumps({"exif": json.dumps({"Image Orientation": "Rotated 90 CW"})}).encode()
    sample = decode(raw(picture=wide.getvalue(), info=info))
    assert isinstance(sample, Sample)
    assert sample.image[0, 0].tolist() == [255, 0, 0]  # upright, the middle square is red on its left
    assert sample.image[0, -1].tolist() == [0, 0, 255]
    nested = b'{"exif": ' + b"[" * 100_000 + b'"Image Orientation"'
    listed = json.dumps({"exif": json.dumps({"Image Orientation": ["Rotated 90 CW"]})}).encode()
    for broken in (
        nested,
        listed,
        b'"Image Orientation"',
        b'{"exif": "Image Orientation"}',
        b'{"exif": null, "Image Orientation": 1}',
    ):
        assert isinstance(decode(raw(picture=wide.getvalue(), info=broken)), Sample)


def ramp() -> bytes:
    picture = Image.new("RGB", (64, 8))
    picture.putdata([(x * 4, 0, 0) for _ in range(8) for x in range(64)])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_random_crops_have_an_address():
    wide = raw(picture=ramp())
    lefts = [int(decode(wide, random_crop=True, epoch=epoch).image[0, 0, 0]) // 4 for epoch in range(40)]
    assert lefts == [int(decode(wide, random_crop=True, epoch=epoch).image[0, 0, 0]) // 4 for epoch in range(40)]
    assert min(lefts) < 10
    assert max(lefts) > 46
    assert int(decode(wide).image[0, 0, 0]) == 28 * 4
