"""Shapes of about one area."""

import math

import numpy as np
import pytest

from imagen.prep.pack.buckets import nearest, of_ratios, read, up_to


@pytest.mark.parametrize(("size", "stride"), [(64, 8), (256, 32), (1024, 64)])
@pytest.mark.parametrize("largest", [1.0, 1.5, 2.0, 4.0])
def test_shapes_are_of_one_area_and_come_in_pairs(size, stride, largest):
    shapes = up_to(largest, size, stride)
    assert (size, size) in shapes
    for height, width in shapes:
        assert height % stride == width % stride == 0
        assert abs(height * width - size * size) <= stride * min(height, width) / 2
        assert max(height, width) <= largest * min(height, width)
        assert (width, height) in shapes
    ratios = [width / height for height, width in shapes]
    assert ratios == sorted(set(ratios))


def test_ratios_become_the_nearest_shapes():
    assert of_ratios([2.0, 1.0, 0.5], 64, 8) == [(88, 48), (64, 64), (48, 88)]
    assert of_ratios([1.0, 1.01], 64, 8) == [(64, 64)]
    for ratio in (0.5, 0.75, 4 / 3, 16 / 9):
        ((height, width),) = of_ratios([ratio], 1024, 8)
        assert abs(math.log(width / height / ratio)) < 8 / 1024 * 2
        assert abs(width * height / 1024**2 - 1) < 0.02


def test_larger_sizes_are_the_smallest_enlarged():
    small, large = read([0.5, 1, 2], [64], 8), read([0.5, 1, 2], [64, 256, 1024], 8)
    assert large == [(16 * height, 16 * width) for height, width in small]
    assert read(None, [64], 8) == []


def test_each_picture_takes_the_nearest_ratio():
    shapes = of_ratios([0.5, 1.0, 2.0], 64, 8)
    ratios = np.array([width / height for height, width in shapes])
    width, height = np.random.default_rng(0).integers(10, 4000, (2, 1000))
    by_hand = np.abs(np.log(width / height)[:, None] - np.log(ratios)).argmin(1)
    assert np.array_equal(nearest(shapes, width, height), by_hand)
