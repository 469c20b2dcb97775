"""The interval is Wilson's where answers are independent, and that of the raters where they are not."""

import numpy as np
import pytest
from scipy.stats import t as student

from imagen.human_eval.intervals import share


def wilson(value: float, n: float, z: float) -> tuple[float, float]:
    centre, half = value + z**2 / (2 * n), z * np.sqrt(value * (1 - value) / n + z**2 / (4 * n**2))
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def test_raters_who_always_answer_alike_count_as_one_answer_each():
    found = share(np.repeat([True, True, True, False], 50), np.repeat(np.arange(4), 50))
    expected = wilson(0.75, 4, student.ppf(0.975, 3))
    assert (found.value, found.low, found.high) == pytest.approx((0.75, *expected))


def test_raters_of_one_answer_each_are_wilson():
    hits = np.array([True] * 30 + [False] * 70)
    found = share(hits, np.arange(100))
    assert (found.low, found.high) == pytest.approx(wilson(0.3, 100, student.ppf(0.975, 99)))


def test_raters_who_agree_to_the_last_count_by_their_answers():
    found = share(np.tile([True, False], 100), np.repeat(np.arange(20), 10))
    assert (found.low, found.high) == pytest.approx(wilson(0.5, 200, student.ppf(0.975, 19)))


def test_where_all_say_the_same_the_interval_is_not_a_point():
    found = share(np.ones(60, bool), np.repeat(["anna", "ben", "cleo"], 20))
    assert found.value == found.high == 1
    assert found.low == pytest.approx(wilson(1, 3, student.ppf(0.975, 2))[0])


def test_one_rater_says_nothing_of_others():
    found = share(np.array([True, False, True, True]), np.zeros(4, int))
    assert (found.value, found.low, found.high) == (0.75, 0, 1)


def test_no_answer_is_no_number():
    found = share(np.zeros(0, bool), np.zeros(0, int))
    assert np.isnan(found.value)
    assert (found.low, found.high) == (0, 1)


@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_the_interval_holds_the_truth_as_often_as_it_says(spread):
    rng = np.random.default_rng(0)
    raters, held = np.repeat(np.arange(25), 20), []
    for _ in range(500):
        own = np.clip(0.6 + spread * rng.standard_normal(25), 0, 1)
        found = share(rng.random(500) < own[raters], raters)
        held.append(found.low <= 0.6 <= found.high)
    assert 0.92 <= np.mean(held) <= 0.985


@pytest.mark.parametrize("spread", [0.0, 0.15, 0.3])
@pytest.mark.parametrize("others", [2, 7])
def test_it_does_so_where_one_rater_answers_ten_times_as_much(spread, others):
    rng = np.random.default_rng(0)
    answers = np.array([100, *[10] * others])
    raters, held, widths = np.repeat(np.arange(len(answers)), answers), [], []
    for _ in range(500):
        own = np.clip(0.6 + spread * rng.standard_normal(len(answers)), 0, 1)
        found = share(rng.random(len(raters)) < own[raters], raters)
        held.append(found.low <= 0.6 <= found.high)
        widths.append(found.high - found.low)
    assert np.mean(held) >= 0.93
    assert np.mean(widths) < (0.95 if others == 2 else 0.7), "nor so wide as to say nothing"


def test_raters_who_always_answer_alike_count_by_their_loads():
    found = share(np.repeat([True, False, False], [100, 10, 10]), np.repeat(np.arange(3), [100, 10, 10]))
    expected = wilson(100 / 120, 120**2 / (100**2 + 2 * 10**2), student.ppf(0.975, 2))
    assert (found.value, found.low, found.high) == pytest.approx((100 / 120, *expected))
