"""Sizes of stages: they follow the last one's, and what does not fit is answered with what does."""

import pytest

from imagen.errors import UserError
from imagen.sizes import stage_sizes

CASCADE = ([64, 256, 1024], [8, 8, 16])


def test_none_is_what_the_stages_were_trained_at():
    assert stage_sizes(None, *CASCADE) == [(64, 64), (256, 256), (1024, 1024)]


@pytest.mark.parametrize("size", [[512, 1280], (512, 1280)])
def test_earlier_stages_follow_the_last(size):
    assert stage_sizes(size, *CASCADE) == [(32, 80), (128, 320), (512, 1280)]


def test_one_number_is_a_square():
    assert stage_sizes(128, *CASCADE) == [(8, 8), (32, 32), (128, 128)]


def test_what_does_not_fit_is_answered_with_the_nearest_sizes_that_do():
    with pytest.raises(UserError, match=r"multiples of 128 .* size=\[128,1024\] or size=\[128,1152\]"):
        stage_sizes([100, 1030], *CASCADE)
    for size in ([128, 1024], [128, 1152]):
        stage_sizes(size, *CASCADE)
    with pytest.raises(UserError, match="multiples of 96"):  # strides without a common factor
        stage_sizes(64, [64, 128], [16, 3 * 32])


@pytest.mark.parametrize("size", [[64], [64, 64, 3], [0, 64], [-64, 64]])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(UserError, match=r"size=.* must be"):
        stage_sizes(size, *CASCADE)
