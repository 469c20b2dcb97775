"""Precision and recall: what lies within, what does not, and which way round."""

import math

import pytest
import torch
from pictures import random_pictures
from small_dinov2 import save_small_dinov2

from imagen.errors import UserError
from imagen.metric.manifold import PrecisionRecall, within
from imagen.metric.pictures import InMemory


def test_a_point_is_within_where_a_neighbour_reaches_it():
    line = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    points = torch.tensor([[2.5], [3.5], [17.0], [19.0], [-1.5]])
    assert within(points, line, k=1).tolist() == [True, True, True, False, False]  # 10's ball reaches 8 either way


def test_a_part_of_the_real_pictures_is_precise_but_recalls_a_part():
    images = torch.cat([random_pictures(60, 4) // 8, 255 - random_pictures(60, 4) // 8])  # a dark and a light half
    real, dark = InMemory(images, [""] * 120), InMemory(images[:60], [""] * 60)
    metric = PrecisionRecall(path=None, size=224, components=8, k=3, batch_size=32)
    assert metric(dark, real) == {"precision": 1.0, "recall": 0.5}
    assert metric(real, dark) == {"precision": 0.5, "recall": 1.0}


def test_with_a_network_it_is_of_the_networks_features(tmp_path):
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(save_small_dinov2(tmp_path))
    images = random_pictures(45, 28)
    images[::3] //= 2  # a third is dark, or bright
    drawn, real = images[:20], 255 - images[20:]
    mean, std = (torch.tensor(rgb).view(3, 1, 1) for rgb in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        own, others = (
            model(pixel_values=(images / 255 - mean) / std).last_hidden_state[:, 0].tolist() for images in (drawn, real)
        )
    metric = PrecisionRecall(path=str(tmp_path), size=28, components=2, k=3, batch_size=16)
    found = metric(InMemory(drawn, [""] * 20), InMemory(real, [""] * 25))
    assert found == pytest.approx({"precision": share_within(own, others, 3), "recall": share_within(others, own, 3)})
    assert all(0 < value < 1 for value in found.values())
    assert metric.provenance()["extractor"] == str(tmp_path)


def share_within(points, others, k):
    """How many points lie in the ball of one of ``others``, one after the other."""
    radii = [sorted(math.dist(one, other) for other in others)[k] for one in others]
    reached = [
        any(math.dist(point, other) <= radius for other, radius in zip(others, radii, strict=True)) for point in points
    ]
    return sum(reached) / len(points)


def test_as_many_pictures_as_neighbours_are_refused():
    few = InMemory(random_pictures(3, 4), [""] * 3)
    with pytest.raises(UserError, match="at least 4 drawn pictures"):
        PrecisionRecall(path=None, size=224, components=2, k=3, batch_size=32)(few, few)
