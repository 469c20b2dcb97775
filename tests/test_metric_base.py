"""What metrics share: counts that are too small are refused, features come in order whatever the batches."""

import pytest
import torch
from pictures import random_pictures

from imagen.errors import UserError
from imagen.metric.base import check_counts, features_of
from imagen.metric.extractor import PixelComponents
from imagen.metric.pictures import InMemory

PICTURES = InMemory(random_pictures(20, 4), [""] * 20)


def test_features_come_in_order_whatever_the_batches():
    extractor = PixelComponents(PICTURES, 5)
    torch.testing.assert_close(features_of(PICTURES, extractor, 7), extractor(PICTURES.images))


def test_too_few_pictures_of_either_kind_are_named():
    check_counts("fid", 20, PICTURES, PICTURES)
    few = InMemory(PICTURES.images[:3], [""] * 3)
    with pytest.raises(UserError, match="fid needs at least 4 drawn pictures, and there are 3"):
        check_counts("fid", 4, few, PICTURES)
    with pytest.raises(UserError, match="fid needs at least 4 real pictures, and there are 3"):
        check_counts("fid", 4, PICTURES, few)
