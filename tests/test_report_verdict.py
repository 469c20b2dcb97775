"""A verdict is differences of means, seed by seed, that must all be on their side, and says no more than they do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from imagen.ablation.study import Point, read_study
from imagen.cli import CONF
from imagen.report.alike import drawing_of
from imagen.report.contrast import Contrast, Difference
from imagen.report.measured import Measured
from imagen.report.verdict import decide, judge
from imagen.runs import RunFolder

WEIGHT = "base.guidance.weight"
DIFFERENCE = [{"of": {"variant": "b"}, "less": {"variant": "a"}}]


@pytest.fixture
def study():
    found = read_study("encoder_size", "demo")
    return replace(found, variants={"a": {}, "b": {}, "c": {}}, axes={WEIGHT: [1, 2]}, also=[])


def rows_of(name="fid", **variants):
    """A row a variant, seed and guidance weight; the second weight's figure is 10 more."""
    return [
        {"variant": variant, "seed": seed, WEIGHT: weight, name: value + 10 * i}
        for variant, values in variants.items()
        for seed, value in enumerate(values)
        for i, weight in enumerate((1, 2))
    ]


def of(study, rows, expected="positive", contrast=DIFFERENCE, seeds=(0, 1, 2), measured=(), metric="fid"):
    asked = {"metric": metric, "expected": expected, "contrast": contrast}
    return judge(replace(study, verdict=asked), rows, seeds, measured)[0]


def test_a_contrast_is_of_means_over_what_it_does_not_name(study):
    rows = rows_of(a=[1, 2, 3], b=[2, 4, 6])
    (found,) = of(study, rows).contrasts
    assert (found.differences, found.interval.mean) == ({0: 1, 1: 2, 2: 3}, 2)
    crossed = [{"of": {"variant": "b", WEIGHT: 2}, "less": {"variant": "a"}}]
    assert of(study, rows, contrast=crossed).contrasts[0].differences == {0: 6, 1: 7, 2: 8}


@pytest.mark.parametrize(
    ("b", "expected", "outcome", "why"),
    [
        ([2.0, 3.1, 4.2], "positive", "holds", "positive, as expected"),
        ([2.0, 3.1, 4.2], "negative", "does not hold here", "negative was expected"),
        ([0.0, 0.9, 1.8], "negative", "holds", "negative, as expected"),
        ([1.0, 3.1, 2.9], "positive", "undecided", "the interval holds zero"),
        ([2.0, 3.0, 4.0], "positive", "undecided", "all seeds give the same figure"),
        ([7.0], "positive", "undecided", "one seed"),
        ([], "positive", "undecided", "no seed"),
        ([1.0, 2.1, 2.9], {"within": 0.1}, "holds", "within 0.1 of what is subtracted (±0.7), as expected"),
        ([1.0, 2.1, 2.9], {"within": 0.01}, "undecided", "the interval holds a bound of the margin"),
        ([2.0, 3.1, 4.2], {"within": 0.01}, "does not hold here", "within 0.01 of what is subtracted (±0.07)"),
        ([2.0, 3.1, 4.2], {"within": 0.2}, "holds", "within 0.2"),
        ([0.0, 0.9, 1.8], {"within": 0.01}, "does not hold here", "within 0.01"),
    ],
)
def test_outcomes(study, b, expected, outcome, why):
    found = of(study, rows_of(a=[1.0, 2.0, 3.0], b=b), expected)
    assert found.outcome == found.contrasts[0].outcome == outcome
    assert found.contrasts[0].why.startswith(why)
    assert found.sentence.startswith(f"{outcome}: FID, (b) − (a): ")
    assert found.decided == (outcome != "undecided")


BETTER, SAME, WORSE = [2.0, 3.1, 4.2], [1.0, 3.1, 2.9], [0.0, 0.9, 1.8]


@pytest.mark.parametrize(
    ("b", "c", "outcome"),
    [
        (BETTER, BETTER, "holds"),
        (BETTER, SAME, "undecided"),
        (SAME, SAME, "undecided"),
        (BETTER, WORSE, "does not hold here"),
        (SAME, WORSE, "does not hold here"),
    ],
)
def test_of_several_contrasts_all_must_hold(study, b, c, outcome):
    several = [{"of": {"variant": name}, "less": {"variant": "a"}} for name in "bc"]
    found = of(study, rows_of(a=[1.0, 2.0, 3.0], b=b, c=c), contrast=several)
    assert found.outcome == outcome
    assert "2 contrasts that must all hold: (b) − (a)" in found.sentence
    assert "; and (c) − (a): " in found.sentence


def test_one_of_several_refutes_by_an_interval_that_allows_for_their_number(study):
    rows = rows_of(a=[1.0, 2.0, 3.0], b=[0.0, 0.6, 1.0], c=BETTER)  # b's is -1.467 ± 1.25 at 95 %, ± 1.80 at 97.5 %
    assert of(study, rows).outcome == "does not hold here"
    several = [{"of": {"variant": name}, "less": {"variant": "a"}} for name in "bc"]
    found = of(study, rows, contrast=several)
    assert found.outcome == "undecided"
    assert [one.outcome for one in found.contrasts] == ["undecided", "holds"]
    assert "95% interval [-2.717, -0.2163]" in found.sentence
    assert "of 2 contrasts one counts against the claim by its 97.50% interval, which holds zero" in found.sentence


@pytest.mark.parametrize("contrasts", [1, 6])
def test_contrasts_without_a_difference_refute_a_claim_as_seldom_as_one_does(contrasts):
    seeds, many = range(3), 600
    differences = np.random.default_rng(contrasts).standard_normal((many, contrasts, len(seeds))).tolist()

    def fails(values):
        found = Difference(dict(zip(seeds, values, strict=True)), dict.fromkeys(seeds, 1.0), {})
        return decide(Contrast({}, {}), found, "positive", contrasts).outcome == "does not hold here"

    rate = np.mean([any(map(fails, one)) for one in differences])
    assert abs(rate - 0.025) < 3 * (0.025 * 0.975 / many) ** 0.5, "13.9 % of six at 95 % each"


def test_at_an_axis_is_a_contrast_at_each_of_its_values(study):
    rows = rows_of(a=[1.0, 2.0, 3.0], b=BETTER)
    for row in rows:
        row["fid"] -= 4 * (row["variant"] == "b" and row[WEIGHT] == 2)  # better at the one, worse at the other
    found = of(study, rows, contrast=[{**DIFFERENCE[0], "at": WEIGHT}])
    assert [one.contrast for one in found.contrasts] == [
        "(b, weight 1) − (a, weight 1)",
        "(b, weight 2) − (a, weight 2)",
    ]
    assert [one.outcome for one in found.contrasts] == ["holds", "does not hold here"]
    assert found.outcome == "does not hold here"
    assert of(study, rows).outcome == "does not hold here", "the mean alone says so too"


def test_a_seed_that_lacks_a_figure_is_left_out_and_told(study):
    rows = rows_of(a=[1.0, 2.0, 3.0, 4.0], b=[2.0, 3.5, 5.0, float("nan")])
    rows = [row for row in rows if (row["seed"], row["variant"]) != (1, "a")]
    del rows[0]["fid"]
    found = of(study, rows, seeds=(0, 1, 2, 3, 4))
    assert found.contrasts[0].differences == {2: 2}
    assert found.contrasts[0].seeds == (
        "1 of 5 seeds; missing: 0 (a has no fid), 1 (a is not there), 3 (b has fid=nan), 4 (b is not there, a is not "
        "there)"
    )
    assert "1 of 5 seeds; missing: 0 (a has no fid)" in found.sentence
    half = [row for row in rows_of(a=[1.0], b=[2.0]) if (row["variant"], row[WEIGHT]) != ("b", 2)]
    assert of(study, half, seeds=(0,)).contrasts[0].missing == {0: "b is not there"}


def measured(study, rows, **told):
    """The points of ``rows`` as measured here; ``told`` by variant, in place of what all have in common."""
    found = []
    for row in rows:
        known = {
            "provenance": {"fid": {"extractor": "inception"}, "clip_score": {"extractor": row["variant"]}},
            "metric_of": {"fid": "fid"},
            "n": {"fid": 4},
            "sampling": {"base": {"weight": 9 * row[WEIGHT], "steps": 32}},
        }
        own = told.get(row["variant"], {})
        common = {"reference": own.get("reference", "0f")}
        point = Point(row["variant"], row["seed"], OmegaConf.create({}), RunFolder(Path()), Path())
        found.append(Measured(point, [row], [known | own], common))
    return found


@pytest.mark.parametrize(
    ("own", "what"),
    [
        ({"provenance": {"fid": {"extractor": "other"}}}, "fid's extractor"),
        ({"reference": "1e"}, "reference"),
        ({"sampling": {"base": {"weight": 1, "steps": 8}}}, "base.sampler.num_steps"),
        ({"n": {"fid": 8}}, "n of fid"),
    ],
)
def test_points_that_were_not_measured_alike_decide_nothing(study, own, what):
    rows = rows_of(a=[1.0, 2.0, 3.0], b=BETTER, c=BETTER)
    assert of(study, rows, measured=measured(study, rows)).outcome == "holds"
    found = of(study, rows, measured=measured(study, rows, b=own))
    assert (found.outcome, found.decided) == (f"undecided: not measured alike ({what})", False)
    assert of(study, rows, measured=measured(study, rows, c=own)).outcome == "holds", "c is not compared"
    # of what is elsewhere the table's columns alone are known
    here = [row | {"drawn": 8, "real": 5} for row in rows if row["variant"] == "a"]
    kept = [row | {"drawn": 9, "real": 5} for row in rows if row["variant"] == "b"]
    unlike = of(study, [*here, *kept], measured=measured(study, here))
    assert unlike.outcome == "undecided: not measured alike (drawn)"


def test_each_seed_may_draw_with_a_seed_of_its_own_all_its_points_alike(study):
    rows = rows_of(a=[1.0, 2.0, 3.0], b=BETTER)
    own = [row | {"sampling_seed": row["seed"]} for row in rows]
    assert of(study, own).outcome == "holds"
    other = [row | {"sampling_seed": 7} if (row["variant"], row["seed"]) == ("b", 1) else row for row in own]
    assert of(study, other).outcome == "undecided: not measured alike (sampling_seed of seed 1)"


def test_what_variants_and_axes_set_is_no_other_way_of_drawing(study):
    rows = rows_of(a=[1.0, 2.0, 3.0], b=BETTER)
    own = replace(study, variants=study.variants | {"b": {"sampler.num_steps": 8}})
    assert of(own, rows, measured=measured(study, rows, b={"sampling": {"base": {"steps": 8}}})).outcome == "holds"
    level = read_study("augmentation_training", "demo")
    told = {"sampling": {"sr1": {"augmentation_level": 0.05, "weight": 3}, "base": {"weight": 2}}}
    assert drawing_of(level, told) == {"base.guidance.weight": "2"}


def test_seconds_are_compared_on_one_machine_alone(study):
    rows = rows_of("seconds_per_step", a=[1.0, 2.0, 3.0], b=BETTER)
    for row in rows:
        row |= {"machine": "one", "drawn": len(row["variant"])}
    assert of(study, rows, metric="seconds_per_step").outcome == "holds"
    rows[0]["machine"] = "another"
    assert of(study, rows, metric="seconds_per_step").outcome == "undecided: not measured alike (machine)"
    del rows[0]["machine"]
    assert of(study, rows, metric="seconds_per_step").outcome == "undecided: not measured alike (machine)"


def test_what_is_also_asked_has_the_claims_contrast_unless_it_says_another(study):
    rows = [row | {"psnr": -row["fid"]} for row in rows_of(a=[1.0, 2.0, 3.0], b=BETTER, c=WORSE)]
    also = [
        {"metric": "psnr", "expected": "negative"},
        {"metric": "fid", "expected": "negative", "contrast": [{"of": {"variant": "c"}, "less": {"variant": "a"}}]},
    ]
    verdict = {"metric": "fid", "expected": "positive", "contrast": DIFFERENCE}
    found = judge(replace(study, verdict=verdict, also=also), rows, (0, 1, 2), [])
    assert [(one.metric, one.outcome) for one in found] == [("fid", "holds"), ("psnr", "holds"), ("fid", "holds")]
    assert [one.contrasts[0].contrast for one in found] == ["(b) − (a)", "(b) − (a)", "(c) − (a)"]


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "ablation").glob("*.yaml")))
def test_every_ablation_can_be_judged(name):
    for scale in ("demo", "gpu", "paper"):
        study = read_study(name, scale)
        assert {one.outcome for one in judge(study, [], [0], [])} == {"undecided"}
        assert {"x", "y"} <= set(study.plot)
