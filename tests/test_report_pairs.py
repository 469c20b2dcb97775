"""Two networks of one seed, place by place: what is hard for both cancels; what cannot be paired has no interval."""

from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy.stats import ttest_rel

from imagen.ablation.study import Point, read_study
from imagen.report.contrast import Contrast
from imagen.report.measured import Measured
from imagen.report.pairs import pairs_of
from imagen.report.verdict import judge
from imagen.runs import RunFolder

WEIGHT = "base.guidance.weight"
CONTRAST = Contrast({"variant": "b"}, {"variant": "a"})


@pytest.fixture
def study():
    asked = {"metric": "heldout_loss", "expected": "negative", "contrast": [{"of": CONTRAST.of, "less": CONTRAST.less}]}
    own = read_study("encoder_size", "demo")
    return replace(own, variants={"a": {}, "b": {}}, axes={WEIGHT: [1, 2]}, verdict=asked, also=[])


@pytest.fixture
def measured(tmp_path):
    """Points with values kept beside them; an array a variant and guidance weight."""

    def write(values):
        found = []
        for variant in dict.fromkeys(name for name, _ in values):
            point = Point(variant, 0, OmegaConf.create({}), RunFolder(tmp_path), tmp_path / variant)
            rows, told = [], []
            for weight in (own for name, own in values if name == variant):
                array = np.asarray(values[variant, weight])
                (point.evaluation / str(weight)).mkdir(parents=True)
                np.savez(point.evaluation / str(weight) / "values.npz", heldout_loss=array)
                figure = {"heldout_loss": float(np.nanmean(array))}
                rows.append({"variant": variant, "seed": 0, WEIGHT: weight, **figure})
                known = {"provenance": {}, "metric_of": {}, "n": {}, "sampling": {}}
                told.append({"name": str(weight), **known})
            found.append(Measured(point, rows, told, {}))
        return found

    return write


def test_the_interval_is_the_paired_tests_over_places_and_means_over_what_is_not_named(study, measured):
    generator = np.random.default_rng(0)
    hard = generator.normal(10, 5, 40)
    a, b = (np.stack([hard + generator.normal(shift, 0.1, 40) for _ in range(2)]) for shift in (0.0, -0.05))
    a[0, 3] = np.nan  # nothing was measured there
    points = measured({(name, w): array[w - 1] for name, array in (("a", a), ("b", b)) for w in (1, 2)})
    found = pairs_of(study, points, "heldout_loss", CONTRAST)
    own = np.delete(b.mean(0), 3), np.delete(a.mean(0), 3)
    low, high = ttest_rel(*own).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((float((own[0] - own[1]).mean()), low, high))
    assert found.n == 39
    rows = [row for one in points for row in one.rows]
    (verdict,) = judge(study, rows, [0], points)
    assert verdict.outcome == "undecided", "one seed says nothing of others"
    assert verdict.sentence.endswith(f"of these networks alone, over 39 places, 95% interval [{low:+.4g}, {high:+.4g}]")


def test_what_cannot_be_paired_has_none(study, measured, tmp_path):
    a = [1.0, 2.0, 3.0]
    points = measured({("a", 1): a, ("a", 2): a, ("b", 1): [1.0, 2.5, 3.5], ("b", 2): [1.5, 2.0, 4.0]})
    assert pairs_of(study, points, "heldout_loss", CONTRAST) is not None
    assert pairs_of(study, points, "fd_pixel", CONTRAST) is None, "no mean over places"
    assert pairs_of(study, points[:1], "heldout_loss", CONTRAST) is None, "its run is elsewhere"
    assert pairs_of(study, points, "heldout_loss", Contrast(CONTRAST.less, CONTRAST.less)) is None, "all equal"
    path = tmp_path / "b" / "2" / "values.npz"
    np.savez(path, heldout_loss=np.ones(4))
    assert pairs_of(study, points, "heldout_loss", CONTRAST) is None, "of other pictures"
    path.write_bytes(path.read_bytes()[:50])
    assert pairs_of(study, points, "heldout_loss", CONTRAST) is None, "damaged"
