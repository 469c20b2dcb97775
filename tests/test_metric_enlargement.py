"""Super-resolution's own figures, by hand."""

import math

import pytest
import torch
from pictures import random_pictures

from imagen.errors import UserError
from imagen.metric.base import Enlarged, Subject
from imagen.metric.enlargement import PSNR, ColourDrift, Consistency, colour_drift, consistency, psnr
from imagen.metric.pictures import InMemory


def test_psnr_of_a_known_error():
    real = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    drawn = real.clone()
    drawn[0] += 10
    ratio = psnr(drawn, real)
    assert ratio[0].item() == pytest.approx(20 * math.log10(25.5))
    assert ratio[1].item() == pytest.approx(10 * math.log10(12 * 255**2))  # the error of rounding alone


def test_an_enlargement_that_averages_to_its_input_is_consistent():
    given = torch.tensor([100, 200], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    drawn = torch.tensor([[90, 110, 180, 220], [110, 90, 220, 180]], dtype=torch.uint8).expand(1, 3, 2, 4)
    assert consistency(drawn, given, 2).item() == pytest.approx(0.0, abs=1e-6)
    assert colour_drift(drawn, given).item() == pytest.approx(0.0, abs=1e-9)


def test_a_shift_of_one_channel_shows_in_both():
    given = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    drawn = given.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).clone()
    drawn[:, 1] += 51
    assert consistency(drawn, given, 2).item() == pytest.approx(0.2 / math.sqrt(3), rel=1e-5)
    assert colour_drift(drawn, given).item() == pytest.approx(0.2)


def subject(**kinds):
    missing = lambda: pytest.fail("is not to be asked for")  # noqa: E731
    own = InMemory(random_pictures(5, 8), [""] * 5)
    return Subject(own, own, missing, kinds, missing)


def enlarged(truth=True):
    drawn, given = InMemory(random_pictures(5, 8), [""] * 5), InMemory(random_pictures(5, 4), [""] * 5)
    return Enlarged(drawn, given, InMemory(random_pictures(5, 8).flip(0), [""] * 5) if truth else None)


def test_each_kind_of_input_has_a_figure_of_its_own_and_only_a_real_one_has_a_truth():
    both = subject(real=enlarged(), samples=enlarged(truth=False))
    ratio = PSNR(batch_size=2)
    assert set(ratio.measure(both)) == {"psnr_real"}
    assert ratio.directions() == {"psnr_real": "higher"}
    for metric in (Consistency(batch_size=2), ColourDrift(batch_size=2)):
        figures = metric.measure(both)
        assert set(figures) == {f"{metric.name}_real", f"{metric.name}_samples"}
        assert metric.counts() == dict.fromkeys(figures, 5)
        assert metric.directions() == dict.fromkeys(figures, "lower")
        assert figures[f"{metric.name}_real"] == pytest.approx(metric.values()[f"{metric.name}_real"].mean().item())
    one = enlarged()
    assert Consistency(batch_size=2).measure(both)["consistency_real"] == pytest.approx(
        consistency(one.drawn.images, one.given.images, 2).mean().item()
    )


def test_where_nothing_is_enlarged_or_no_truth_is_behind_it_one_sentence_says_so():
    with pytest.raises(UserError, match=r"colour_drift is of what a super-resolution stage makes.*depth=2"):
        ColourDrift(batch_size=2).measure(subject())
    with pytest.raises(UserError, match=r"psnr needs a real picture.*lowres=real"):
        PSNR(batch_size=2).measure(subject(samples=enlarged(truth=False)))
