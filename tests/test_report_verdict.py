"""A verdict is a weighted sum of means, seed by seed, and says no more than its interval."""

from dataclasses import replace

import pytest

from imagen.ablation.study import read_study
from imagen.cli import CONF
from imagen.errors import UserError
from imagen.report.verdict import decide, judge, judge_loss

WEIGHT = "base.guidance.weight"
DIFFERENCE = [{"times": 1, "of": {"variant": "b"}}, {"times": -1, "of": {"variant": "a"}}]


def rows_of(a, b, name="fid"):
    """A row a variant, seed and guidance weight; the second weight's figure is 10 more."""
    return [
        {"variant": variant, "seed": seed, WEIGHT: weight, name: value + 10 * i}
        for variant, values in {"a": a, "b": b}.items()
        for seed, value in enumerate(values)
        for i, weight in enumerate((1, 2))
    ]


def test_terms_are_means_over_what_they_do_not_name():
    found = decide(rows_of([1, 2, 3], [2, 4, 6]), "fid", "positive", DIFFERENCE)
    assert found.differences == {0: 1, 1: 2, 2: 3}
    assert found.interval.mean == 2
    crossed = [{"times": 2, "of": {"variant": "b", WEIGHT: 2}}, {"times": -0.5, "of": {}}]
    assert decide(rows_of([1, 2], [2, 4]), "fid", "positive", crossed).differences == {
        0: 2 * 12 - 0.5 * 6.5,
        1: 2 * 14 - 0.5 * 8,
    }


@pytest.mark.parametrize(
    ("b", "expected", "outcome", "why"),
    [
        ([2.0, 3.1, 4.2], "positive", "holds", "positive, as expected"),
        ([2.0, 3.1, 4.2], "negative", "does not hold here: the opposite", "negative was expected"),
        ([0.0, 0.9, 1.8], "negative", "holds", "negative, as expected"),
        ([1.0, 3.1, 2.9], "positive", "undecided", "the interval holds zero"),
        ([2.0, 3.0, 4.0], "positive", "undecided", "all seeds give the same figure"),
        ([7.0], "positive", "undecided", "one seed"),
        ([], "positive", "undecided", "no seed"),
    ],
)
def test_outcomes(b, expected, outcome, why):
    found = decide(rows_of([1.0, 2.0, 3.0], b), "fid", expected, DIFFERENCE)
    assert found.outcome == outcome
    assert found.why.startswith(why)
    assert found.sentence.startswith(f"{outcome}: FID, (b) − (a): ")
    assert len(found.differences) == len(b)


def test_a_seed_without_all_terms_is_left_out_and_so_is_what_is_no_number():
    rows = [row for row in rows_of([1.0, 2.0, 3.0, 4.0], [2.0, 3.5, 5.0, float("nan")]) if row["seed"] != 1]
    found = decide(rows, "fid", "positive", DIFFERENCE)
    assert found.differences == {0: 1, 2: 2}
    assert "2 seeds" in found.sentence


def test_the_held_out_loss_is_expected_lower_where_the_claim_is_better():
    study = replace(read_study("encoder_size", "demo"), variants={"a": {}, "b": {}})
    loss = rows_of([0.3, 0.4], [0.1, 0.25], "heldout_loss")
    for metric, expected, side in (
        ("clip_score", "positive", "negative"),
        ("fid", "negative", "negative"),
        ("fid", "positive", "positive"),
    ):
        own = replace(study, verdict={"metric": metric, "expected": expected, "contrast": DIFFERENCE})
        found = judge_loss(own, loss)
        assert (found.metric, found.expected) == ("heldout_loss", side)
        assert found.differences == pytest.approx({0: -0.2, 1: -0.15})
    assert judge_loss(own, rows_of([1], [2])) is None
    within = [{"times": 1, "of": {"variant": "a", WEIGHT: 1}}, {"times": -1, "of": {"variant": "a", WEIGHT: 2}}]
    assert judge_loss(replace(study, verdict={**own.verdict, "contrast": within}), loss) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expected": "up"}, "expected=up must be positive or negative"),
        ({"contrast": [{"times": 1, "of": {"wind": 1}}]}, "names wind, which is none of variant, base.guidance.weight"),
        ({"contrast": [{"times": 1, "of": {"variant": "c"}}]}, "names variant=c; there are a, b"),
    ],
)
def test_a_verdict_that_names_what_is_not_there_is_refused(change, message):
    study = replace(read_study("encoder_size", "demo"), variants={"a": {}, "b": {}})
    verdict = {"metric": "fid", "expected": "positive", "contrast": DIFFERENCE} | change
    with pytest.raises(UserError, match=message):
        judge(replace(study, verdict=verdict), rows_of([1], [2]))


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "ablation").glob("*.yaml")))
def test_every_ablations_contrast_is_of_its_variants_and_axes(name):
    for scale in ("demo", "gpu", "paper"):
        study = read_study(name, scale)
        assert judge(study, []).outcome == "undecided"
        assert judge_loss(study, []) is None
        assert {"x", "y"} <= set(study.plot)
