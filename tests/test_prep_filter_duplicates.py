"""Duplicates and captions over a whole set, against a slow and plain way to find them."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image
from raw_shards import encoded, scene

from imagen.errors import UserError
from imagen.prep.filter.duplicates import DUPLICATE, KEPT, REPEATED, Candidates, Limits, duplicates, judge, near
from imagen.prep.filter.picture import looks

RNG = np.random.default_rng(0)


def candidates(phash, colours=None, caption=None, pixels=None):
    n = len(phash)
    return Candidates(
        np.array(phash, dtype=np.uint64),
        np.zeros((n, 12), np.uint8) if colours is None else np.array(colours, dtype=np.uint8),
        np.arange(n, dtype=np.uint64) if caption is None else np.array(caption, dtype=np.uint64),
        np.ones(n, np.int64) if pixels is None else np.array(pixels),
    )


def limits(**changed):
    return Limits(**({"distance": 0, "colour": 4, "repeats": None} | changed))


def test_equal_hashes_leave_the_largest_and_of_those_the_first():
    found = duplicates(candidates([7, 8, 7, 7, 8], pixels=[10, 5, 30, 30, 5]), limits())
    assert found.tolist() == [True, False, False, True, True]


def test_equal_hashes_of_other_colours_are_other_pictures():
    colours = np.zeros((6, 12), np.uint8)
    colours[:, 0] = [0, 100, 3, 104, 200, 105]
    found = duplicates(candidates([1] * 6, colours), limits())
    assert found.tolist() == [False, False, True, True, False, False]  # the last is near one that went
    assert not duplicates(candidates([1] * 6, colours), limits(colour=0)).any()
    assert duplicates(candidates([1] * 6, colours), limits(colour=255)).sum() == 5


def test_against_the_plain_way():
    phash, pixels = RNG.integers(0, 40, 300), RNG.integers(1, 5, 300)
    colours = RNG.integers(0, 3, (300, 1)) * 50 + RNG.integers(0, 3, (300, 12))
    found = duplicates(candidates(phash, colours, pixels=pixels), limits())
    kept: list[int] = []
    for i in sorted(range(300), key=lambda i: (-pixels[i], i)):
        if not any(phash[i] == phash[j] and np.abs(colours[i] - colours[j]).max() <= 4 for j in kept):
            kept.append(i)
    assert set(np.flatnonzero(~found)) == set(kept)


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_near_hashes_are_all_within_reach_of_each_other(distance):
    base = RNG.integers(0, 2**63, 40, dtype=np.uint64)
    hashes = list(base)
    for value in base[:25]:
        flipped = value
        for bit in RNG.choice(64, RNG.integers(1, 6), replace=False):
            flipped = flipped ^ np.uint64(1 << int(bit))
        hashes.append(flipped)
    labels = near(np.array(hashes), distance)
    for i, j in itertools.combinations(range(len(hashes)), 2):
        close = int(hashes[i] ^ hashes[j]).bit_count() <= distance
        assert (labels[i] == labels[j]) == close  # of so few there are no chains


def test_a_chain_of_near_hashes_is_one_group():
    assert len(set(near(np.array([0, 1, 3, 7, 15], dtype=np.uint64), 1))) == 1


def test_captions_are_counted_once_the_copies_are_gone():
    caption = [5, 5, 5, 6, 6, 7]
    found = judge(candidates([1, 1, 2, 3, 4, 5], caption=caption), limits(repeats=1))
    assert found.tolist() == [REPEATED, DUPLICATE, REPEATED, REPEATED, REPEATED, KEPT]
    found = judge(candidates([1, 1, 2, 3, 4, 5], caption=caption), limits(repeats=2))
    assert found.tolist() == [KEPT, DUPLICATE, KEPT, KEPT, KEPT, KEPT]


def test_nothing_at_all():
    empty = candidates(np.zeros(0), np.zeros((0, 12)))
    assert len(judge(empty, limits(distance=2, repeats=3))) == 0


def test_a_picture_encoded_anew_has_the_same_colours_and_nearly_the_same_hash():
    for seed in range(20):
        picture = scene(400, 300, seed)
        small = Image.open(io.BytesIO(encoded(picture.resize((300, 225)), quality=70))).convert("RGB")
        one, other = looks(picture), looks(small)
        apart = np.frombuffer(one.colours, np.uint8).astype(int) - np.frombuffer(other.colours, np.uint8)
        assert np.abs(apart).max() <= 4
        bits = int.from_bytes(one.phash, "big") ^ int.from_bytes(other.phash, "big")
        assert bits.bit_count() <= 8


def test_squares_of_two_colours_are_two_pictures():
    def square(colour):
        picture = Image.new("RGB", (256, 256), "white")
        picture.paste(colour, (40, 40, 216, 216))
        return looks(picture)

    seen = [square("purple"), square("green"), square("purple")]
    assert len({one.phash for one in seen}) == 1
    both = candidates(
        [int.from_bytes(one.phash, "little") for one in seen],
        np.stack([np.frombuffer(one.colours, np.uint8) for one in seen]),
    )
    assert duplicates(both, limits()).tolist() == [False, False, True]


def test_limits_are_checked():
    for bad in ({"distance": 4}, {"distance": -1}, {"colour": -1}, {"repeats": 0}):
        with pytest.raises(UserError, match=r"duplicate_|max_caption_repeats"):
            limits(**bad)
