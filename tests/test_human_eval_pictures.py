"""Pictures reach raters without a word of where they are from; what cannot be read is named."""

import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from small_study import draw_folder, pixels

from imagen.errors import UserError
from imagen.human_eval import pictures


def test_the_pictures_of_a_prompt_come_in_the_order_of_their_samples(tmp_path):
    folder = draw_folder(tmp_path / "a", ["a dog", "a cat"], 0, count=3)
    listed = pictures.listed(folder, "A")
    assert list(listed) == ["a dog", "a cat"]
    assert [path.name for path in listed["a cat"]] == ["001_0.png", "001_1.png", "001_2.png"]
    assert all(path.parent == folder for paths in listed.values() for path in paths)


def listing(folder, file: str):
    (folder / "samples.json").write_text(json.dumps({"pictures": [{"prompt": "a", "sample": 0, "file": file}]}))
    return pictures.listed(folder, "A")


@pytest.mark.parametrize("file", ["../secret.png", "64/../../secret.png", "/etc/passwd"])
def test_a_list_never_leads_out_of_its_folder(tmp_path, file):
    with pytest.raises(UserError, match=f"A=.*samples\\.json names {file}, which is not in the folder"):
        listing(tmp_path, file)


def test_a_list_may_lead_into_a_folder_of_one_size(tmp_path):
    assert listing(tmp_path, "64/00000_0.png") == {"a": [tmp_path / "64" / "00000_0.png"]}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pictures": [{"prompt": "a"}]}', '{"pictures": 7}'])
def test_a_damaged_list_is_named(tmp_path, content):
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(UserError, match=r"B=.*samples\.json is damaged"):
        pictures.listed(tmp_path, "B")


def test_a_folder_without_a_list_is_named(tmp_path):
    with pytest.raises(UserError, match=r"A=.* has no samples\.json"):
        pictures.listed(tmp_path, "A")


def test_a_written_picture_has_the_same_pixels_and_no_metadata(tmp_path, rng):
    picture = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    told = PngInfo()
    told.add_text("prompt", "drawn by A")
    Image.fromarray(picture).save(tmp_path / "a.png", pnginfo=told)
    name = pictures.write(pictures.read(tmp_path / "a.png"), tmp_path)
    np.testing.assert_array_equal(pixels(tmp_path / name), picture)
    assert b"drawn by A" not in (tmp_path / name).read_bytes()
    assert pictures.write(picture, tmp_path) == name


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n damaged"])
def test_what_is_no_picture_is_named(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png is no picture"):
        pictures.read(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(16, 16), (13, 21), (5, 64)])
def test_a_spoilt_picture_has_the_size_but_not_the_look(size, rng):
    picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    spoilt = pictures.spoil(picture, "a")
    assert spoilt.shape == picture.shape
    assert np.mean(spoilt != picture) > 0.5
    assert np.array_equal(spoilt, pictures.spoil(picture, "a"))
    assert not np.array_equal(spoilt, pictures.spoil(picture, "b"))


def test_a_spoilt_picture_keeps_its_pixels_where_tiles_fit(rng):
    picture = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    spoilt = pictures.spoil(picture, "a")
    assert sorted(map(tuple, spoilt.reshape(-1, 3))) == sorted(map(tuple, picture.reshape(-1, 3)))


@pytest.fixture
def rng():
    return np.random.default_rng(0)
