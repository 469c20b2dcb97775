"""Fréchet distance: zero to itself, the closed form between normal distributions."""

import pytest
import torch
from pictures import random_pictures

from imagen.errors import UserError
from imagen.metric.extractor import Extractor
from imagen.metric.frechet import FrechetDistance, FrechetPixels
from imagen.metric.pictures import InMemory


class Means(Extractor):
    """The mean of each channel, in [0, 1]."""

    num_features = 3

    def forward(self, images):
        return images.float().mean(dim=(2, 3)) / 255


class OnMeans(FrechetDistance):
    name = "fd_means"

    def make_extractor(self, reference):
        return Means()


def coloured(mean, deviation, count=4000):
    """Pictures of one colour each, normally distributed round grey; rounding to bytes adds 1 / 12 of a step."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randn(count, 3, generator=generator)
    colours = (colours - colours.mean(dim=0)) / colours.std(dim=0) * torch.tensor(deviation) + torch.tensor(mean)
    images = (colours * 255).round().clamp(0, 255).to(torch.uint8)[:, :, None, None].expand(-1, -1, 2, 2)
    return InMemory(images.contiguous(), [""] * count)


def test_a_set_is_at_no_distance_from_itself():
    own = InMemory(random_pictures(300, 8), [""] * 300)
    metric = FrechetPixels(components=64, batch_size=100)
    assert abs(metric(own, own)["fd_pixel"]) < 1e-3
    assert metric.provenance()["extractor"] == "PixelComponents"


def test_a_shift_counts_by_its_square():
    shifted = OnMeans(batch_size=512)(coloured([0.6, 0.5, 0.4], [0.1] * 3), coloured([0.5] * 3, [0.1] * 3))
    assert shifted["fd_means"] == pytest.approx(0.02, abs=2e-4)


def test_a_wider_spread_counts_by_the_square_of_the_deviations_difference():
    wider = OnMeans(batch_size=512)(coloured([0.5] * 3, [0.1, 0.1, 0.12]), coloured([0.5] * 3, [0.05, 0.1, 0.1]))
    assert wider["fd_means"] == pytest.approx(0.05**2 + 0.02**2, rel=0.02)


def test_the_batches_are_of_no_consequence():
    a, b = InMemory(random_pictures(100, 8), [""] * 100), InMemory(random_pictures(90, 8) // 2, [""] * 90)
    values = [FrechetPixels(components=8, batch_size=size)(a, b)["fd_pixel"] for size in (7, 100)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_too_few_pictures_are_refused():
    one, many = InMemory(random_pictures(1, 8), [""]), InMemory(random_pictures(90, 8), [""] * 90)
    with pytest.raises(UserError, match="fd_pixel needs at least 2 drawn pictures, and there are 1"):
        FrechetPixels(components=8, batch_size=4)(one, many)
