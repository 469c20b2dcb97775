"""The interval is Student's, holds the truth as often as it says, and has no bounds where nothing tells the spread."""

import numpy as np
import pytest

from imagen.report.intervals import interval


def test_a_case_by_hand():
    found = interval([1.0, 2.0, 3.0])  # s = 1, t(0.975, 2) = 4.302653
    assert (found.mean, found.n) == (2, 3)
    assert (found.low, found.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_truth_is_held_as_often_as_it_says(n):
    generator = np.random.default_rng(n)
    intervals = [interval(list(values)) for values in 5 + 3 * generator.standard_normal((2000, n))]
    held = np.mean([one.low <= 5 <= one.high for one in intervals])
    assert abs(held - 0.95) < 3 * (0.95 * 0.05 / 2000) ** 0.5


@pytest.mark.parametrize("values", [[0.3], [0.3, 0.3, 0.3], [0.1 + 0.2, 0.3], [0.0, 0.0]])
def test_without_a_spread_there_are_no_bounds(values):
    found = interval(values)
    assert (found.low, found.high, found.n) == (None, None, len(values))
    assert found.mean == pytest.approx(values[0])
