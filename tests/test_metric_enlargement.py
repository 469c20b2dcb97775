"""Super-resolution's own figures, by hand."""

import math

import pytest
import torch

from imagen.metric.enlargement import colour_drift, consistency, psnr


def test_psnr_of_a_known_error():
    real = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    drawn = real.clone()
    drawn[0] += 10
    ratio = psnr(drawn, real)
    assert ratio[0].item() == pytest.approx(20 * math.log10(25.5))
    assert ratio[1].item() == math.inf


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
