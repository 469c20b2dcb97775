"""Pictures and samples from the web: every fix and every fault, with real pictures."""

import io
import json

import awkward
import imagehash
import numpy as np
import pytest
from PIL import Image
from raw_shards import encoded, sample, scene, write_raw

from imagen.data import pixels
from imagen.prep.filter.look import original_side, scores, see
from imagen.prep.filter.picture import Opened, Unusable, encode, looks, open_upright, spread
from imagen.prep.filter.samples import MAX_BYTES, Sample, read_samples

FORMATS = {row.file: row.content for row in awkward.formats()}


def mean_difference(one, other):
    return np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean()


@pytest.mark.parametrize(
    "file", ["grey.jpg", "one-bit.png", "cmyk.jpg", "rgba.png", "la.png", "palette.png", "still.gif"]
)
def test_odd_kinds_are_put_right_and_stay_so(file):
    opened = open_upright(FORMATS[file], None)
    assert opened.fixed
    assert opened.picture.mode == "RGB"
    anew = encode(opened, quality=95)
    again = open_upright(anew, None)
    assert not again.fixed
    assert again.suffix == opened.suffix == ("jpg" if file.endswith("jpg") else "png")
    assert mean_difference(again.picture, opened.picture) < (2 if opened.suffix == "jpg" else 1e-9)


def test_what_is_transparent_is_white():
    for file in ("rgba.png", "la.png"):
        top = np.asarray(open_upright(FORMATS[file], None).picture)[0]
        assert top.min() > 250


@pytest.mark.parametrize("file", ["turned.jpg", "turned-small.jpg", "turned.png", "turned.webp"])
def test_a_camera_held_sideways_by_its_tag(file):
    opened = open_upright(FORMATS[file], "Rotated 90 CW")  # the json says so too: turned but once
    assert opened.fixed
    assert opened.turned
    assert mean_difference(opened.picture, awkward.upright()[file]) < 3
    again = encode(opened, quality=95)
    assert not open_upright(again, None).fixed
    assert mean_difference(pixels.open_picture(again), awkward.upright()[file]) < 4


@pytest.mark.parametrize("words", pixels._UPRIGHT)
def test_a_camera_held_any_way_by_the_json(words):
    lying = scene(60, 40, 0)
    opened = open_upright(encoded(lying, "PNG"), words)
    assert np.array_equal(opened.picture, lying.transpose(pixels._UPRIGHT[words]))
    assert opened.turned == (opened.picture.size == (40, 60))
    assert not open_upright(encoded(lying, "PNG"), "Horizontal (normal)").fixed


def test_a_good_picture_needs_nothing():
    for kind, suffix in {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}.items():
        opened = open_upright(encoded(scene(60, 40, 0), kind), None)
        assert (opened.fixed, opened.turned, opened.suffix) == (False, False, suffix)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("animated.gif", "animated"),
        ("animated.webp", "animated"),
        ("animated.png", "animated"),
        ("sixteen-bit.png", "16-bit"),
        ("huge-9000.png", "too large"),
        ("huge-16000.png", "too large"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_put_right(file, reason):
    with pytest.raises(Unusable, match=f"^{reason}$"):
        open_upright(FORMATS[file], None)


def test_sixteen_bits_of_colour_are_told_from_eight():
    import pyvips

    deep = pyvips.Image.new_from_array(np.full((8, 8, 3), 40_000, np.uint16)).copy(interpretation="rgb16")
    with pytest.raises(Unusable, match="16-bit"):
        open_upright(deep.pngsave_buffer(), None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_cut_off_or_none(kind):
    whole = encoded(scene(300, 300, 0), kind)
    for cut in (len(whole) // 2, len(whole) * 9 // 10):
        with pytest.raises(Unusable, match=r"truncated|undecodable"):
            open_upright(whole[:cut], None)
    if kind == "JPEG":
        with pytest.raises(Unusable, match="truncated"):
            open_upright(whole[: len(whole) // 2], None)
    for nothing in (b"", b"<!DOCTYPE html>", b"\x89PNG\r\n\x1a\n", whole[:10]):
        with pytest.raises(Unusable, match=r"truncated|undecodable"):
            open_upright(nothing, None)


def test_the_hash_is_imagehashs_and_reads_like_its_hex():
    picture = scene(300, 200, 4)
    assert looks(picture).phash.hex() == str(imagehash.phash(picture))


def test_colours_are_the_means_of_the_quarters():
    picture = Image.new("RGB", (100, 100), (10, 20, 30))
    picture.paste((200, 100, 50), (50, 0, 100, 50))
    assert list(looks(picture).colours) == [10, 20, 30, 200, 100, 50, 10, 20, 30, 10, 20, 30]


def test_spread_is_the_standard_deviation_of_the_liveliest_channel():
    picture = scene(90, 70, 3)
    assert spread(picture) == pytest.approx(np.asarray(picture).reshape(-1, 3).std(0).max())
    assert spread(Image.new("RGB", (9, 9), (200, 30, 30))) == 0


def test_sixteen_bits_that_img2dataset_saturated_have_no_spread():
    white = encoded(Image.new("L", (700, 520), 255))
    assert see(Sample("0", white, "a"))["spread"] == 0


def test_what_is_seen_of_a_sample():
    words = json.dumps({"Image Orientation": "Rotated 90 CW"})
    info = {"exif": words, "punsafe": 0.5, "original_width": 900, "original_height": 700}
    row = see(Sample("k", encoded(scene(60, 40, 0)), " A  b\n", info))
    assert (row["width"], row["height"], row["original"], row["fixed"]) == (40, 60, 700, True)
    assert row["caption_length"] == 3
    assert json.loads(row["info"])["punsafe"] == 0.5
    assert row["caption"] == see(Sample("l", b"", "a B"))["caption"]
    assert see(Sample("l", b"", "a B"))["fault"] == "undecodable"


def test_the_short_side_that_was_downloaded():
    assert original_side({"original_width": 900, "original_height": 100}, 256) == 100
    for info in ({}, {"original_width": 9}, {"original_width": None, "original_height": None}):
        assert original_side(info, 256) == 256


def test_scores_are_numbers_and_short_words_also_within_objects():
    info = {"a": 1.5, "url": "http://" + "x" * 40, "LANGUAGE": "en", "meta": {"p": 0.1, "list": [1]}, "none": None}
    assert scores(info, depth=3) == {"a": 1.5, "LANGUAGE": "en", "meta": {"p": 0.1}}


def faults(folder, *samples):
    tar = write_raw(folder, 0, samples)
    return {one.key: one.fault for one in read_samples(tar)}


def test_samples_that_are_not_whole(tmp_path):
    good = encoded(scene(40, 40, 0))
    deep = b'{"a":' * 2000 + b"1" + b"}" * 2000
    broken = {
        "no-picture": [("no-picture.txt", b"a"), ("no-picture.json", b"{}")],
        "bad-json": [("bad-json.jpg", good), ("bad-json.json", b"{"), ("bad-json.txt", b"a")],
        "list-json": [("list-json.jpg", good), ("list-json.json", b"[1]"), ("list-json.txt", b"a")],
        "deep-json": [("deep-json.jpg", good), ("deep-json.json", deep), ("deep-json.txt", b"a")],
        "wide-json": [
            ("wide-json.jpg", good),
            ("wide-json.json", json.dumps({str(i): i for i in range(999)}).encode()),
        ],
        "nul": sample("nul", good, caption="before\0after"),
        "latin": [("latin.jpg", good), ("latin.txt", b"caf\xe9")],
        "large": [("large.jpg", bytes(MAX_BYTES + 1)), ("large.txt", b"a")],
    }
    fine = {
        "right-to-left": sample("right-to-left", good, caption="תמונה של חוף הים בשקיעה"),
        "long": sample("long", good, caption="word " * 20_000),
        "picture-only": [("picture-only.jpg", good)],
        "upper": [("upper.JPG", good), ("upper.TXT", b"a")],
    }
    said = faults(tmp_path, *broken.values(), *fine.values(), sample("nul", good))
    expected = dict.fromkeys(fine) | {
        "no-picture": "no picture",
        **dict.fromkeys(["bad-json", "list-json", "deep-json", "wide-json"], "bad json"),
        "latin": "bad caption",
        "large": "too large",
        "nul": "duplicate key",  # the last of that key; the first is a bad caption
    }
    assert said == expected


def test_the_caption_is_the_text_and_without_one_the_jsons(tmp_path):
    good = encoded(scene(40, 40, 0))
    tar = write_raw(
        tmp_path,
        0,
        [
            [("0.jpg", good), ("0.json", b'{"caption": "of the json"}'), ("0.txt", b"of the text")],
            [("1.jpg", good), ("1.json", b'{"caption": "of the json"}')],
            [("2.jpg", good), ("2.json", b'{"caption": null}')],
            [("3.jpg", good), ("3.json", b'{"caption": "half \\ud83d a pair", "exif": "\\ud800"}')],
        ],
    )
    read = list(read_samples(tar))
    assert [one.caption for one in read] == ["of the text", "of the json", "", "half ? a pair"]
    assert read[3].info["exif"] == "?"
    assert [one.orientation for one in read] == [None] * 4


def test_webp_is_written_anew_as_webp():
    opened = Opened(scene(64, 64, 1), fixed=True, turned=False, suffix="webp")
    assert Image.open(io.BytesIO(encode(opened, 95))).format == "WEBP"
