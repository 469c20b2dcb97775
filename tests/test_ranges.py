import math

import pytest

from imagen.ranges import Range


@pytest.mark.parametrize(
    ("range_", "inside", "outside", "words"),
    [
        (Range(1), [1, 2.5, 10**9], [0, -1, math.nan], "at least 1"),
        (Range(0, 1), [0, 0.5, 1], [-0.1, 1.1, math.nan, math.inf], "between 0 and 1"),
    ],
)
def test_a_range_has_its_ends_and_says_what_it_is(range_, inside, outside, words):
    assert all(value in range_ for value in inside)
    assert not any(value in range_ for value in outside)
    assert str(range_) == words
