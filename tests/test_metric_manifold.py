"""Precision and recall: what lies within, what does not, and which way round."""

import pytest
import torch
from pictures import random_pictures

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


def test_as_many_pictures_as_neighbours_are_refused():
    few = InMemory(random_pictures(3, 4), [""] * 3)
    with pytest.raises(UserError, match="at least 4 drawn pictures"):
        PrecisionRecall(path=None, size=224, components=2, k=3, batch_size=32)(few, few)
