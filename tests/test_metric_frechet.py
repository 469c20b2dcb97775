"""Fréchet distance: zero to itself, the closed form between normal distributions."""

import pytest
import torch
from pictures import random_pictures
from small_dinov2 import save_small_dinov2

from imagen.errors import UserError
from imagen.metric.extractor import Extractor
from imagen.metric.frechet import FrechetDINOv2, FrechetDistance, FrechetPixels
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


class Projections(Extractor):
    """256 random directions through the pixels of 8 px pictures."""

    num_features = 256
    directions: torch.Tensor

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("directions", torch.randn(192, self.num_features, generator=generator) / 192**0.5)

    def forward(self, images):
        return images.float().flatten(1) / 255 @ self.directions


class OnProjections(FrechetDistance):
    name = "fd_projections"

    def make_extractor(self, reference):
        return Projections()


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


def test_a_set_of_fewer_pictures_than_features_is_at_no_distance_from_itself():
    own = InMemory(random_pictures(64, 8), [""] * 64)  # their covariance has 63 dimensions of 256
    assert abs(OnProjections(batch_size=50)(own, own)["fd_projections"]) < 1e-3


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


def test_fd_dinov2_is_of_class_tokens_of_pictures_in_imagenets_colours(tmp_path):
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(save_small_dinov2(tmp_path))
    drawn, real = random_pictures(90, 28)[60:] // 2, random_pictures(60, 28)
    mean, std = (torch.tensor(rgb).view(3, 1, 1) for rgb in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        x, y = (model(pixel_values=(images / 255 - mean) / std).last_hidden_state[:, 0] for images in (drawn, real))
    metric = FrechetDINOv2(path=str(tmp_path), size=28, batch_size=16)
    found = metric(InMemory(drawn, [""] * 30), InMemory(real, [""] * 60))
    assert found["fd_dinov2"] == pytest.approx(distance(x.double(), y.double()), rel=1e-3)
    assert metric.provenance()["extractor"] == str(tmp_path)


def distance(x, y):
    """Between features [m d] and [n d], by symmetric roots."""

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T

    a, b = torch.cov(x.T), torch.cov(y.T)
    shift = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    return (shift + (a + b - 2 * root(root(a) @ b @ root(a))).trace()).item()


def test_dinov2_is_given_colours_as_it_was_trained_with_them(tmp_path):
    """Of 0, 128 and 255: (0 - 0.485) / 0.229, (0.501961 - 0.456) / 0.224 and (1 - 0.406) / 0.225."""
    colour = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 28, 28)
    metric = FrechetDINOv2(path=str(save_small_dinov2(tmp_path)), size=28, batch_size=1)
    extractor = metric.make_extractor(InMemory(colour, [""]))
    given = []
    keep = lambda _, args, options: given.append(options["pixel_values"])  # noqa: E731
    extractor.network.register_forward_pre_hook(keep, with_kwargs=True)
    extractor(colour)
    expected = torch.tensor([-2.117904, 0.205182, 2.64]).view(1, 3, 1, 1).expand(1, 3, 28, 28)
    torch.testing.assert_close(given[0], expected)


def test_too_few_pictures_are_refused():
    one, many = InMemory(random_pictures(1, 8), [""]), InMemory(random_pictures(90, 8), [""] * 90)
    with pytest.raises(UserError, match="fd_pixel needs at least 2 drawn pictures, and there are 1"):
        FrechetPixels(components=8, batch_size=4)(one, many)
