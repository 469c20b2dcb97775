"""Kernel distances: KID's cubic kernel by hand, CMMD's closed form between normal distributions."""

import pytest
import torch
from pictures import random_pictures
from small_clip import save_small_clip
from test_metric_frechet import Means

from imagen.errors import UserError
from imagen.metric.kernel import CMMD, KID, gaussian_mmd
from imagen.metric.pictures import InMemory


class KIDOnMeans(KID):
    def make_extractor(self):
        return Means()


def pictures(count, divisor=1):
    return InMemory(random_pictures(count, 8) // divisor, [""] * count)


def make(subsets, subset_size):
    return KIDOnMeans(weights=None, resize="legacy", subsets=subsets, subset_size=subset_size, batch_size=16, seed=0)


def test_kid_is_the_unbiased_discrepancy_of_a_cubic_kernel():
    drawn, real = pictures(40), pictures(40, 2)
    x, y = (Means()(one.images).double() for one in (drawn, real))

    def kernel(a, b):
        return (a @ b.T / 3 + 1) ** 3

    off = 40 * 39
    exact = (
        (kernel(x, x).sum() - kernel(x, x).trace()) / off
        + (kernel(y, y).sum() - kernel(y, y).trace()) / off
        - 2 * kernel(x, y).mean()
    )
    assert make(1, 40)(drawn, real)["kid"] == pytest.approx(exact.item(), rel=1e-3)


def test_kids_draws_are_seeded_and_leave_the_global_generator_alone():
    drawn, real = pictures(40), pictures(40, 2)
    before = torch.random.get_rng_state()
    assert make(5, 20)(drawn, real) == make(5, 20)(drawn, real)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_kid_of_fewer_pictures_than_a_draw_is_refused():
    with pytest.raises(UserError, match="kid needs at least 50 drawn pictures, and there are 40"):
        make(5, 50)(pictures(40), pictures(60))


def test_the_gaussian_discrepancy_has_the_closed_form_of_normal_distributions():
    """E k(x, y) of N(0, 1) and N(m, 1) in one dimension is s / sqrt(s^2 + 2) exp(-m^2 / (2 (s^2 + 2)))."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1500, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    s, m = 2.0, 1.5
    width = torch.tensor(s**2 + 2, dtype=torch.float64)
    exact = 2 * s / width.sqrt() * (1 - torch.exp(-(m**2) / (2 * width)))
    assert gaussian_mmd(x, y + m, s) == pytest.approx(exact.item(), rel=0.1)
    assert gaussian_mmd(x, x, s) == pytest.approx(0.0, abs=1e-12)


def test_cmmd_of_a_set_with_itself_is_zero_and_of_darker_pictures_is_not(tmp_path):
    metric = CMMD(path=str(save_small_clip(tmp_path)), size=16, sigma=10.0, batch_size=16)
    own = pictures(30)
    assert metric(own, own)["cmmd"] == pytest.approx(0.0, abs=1e-6)
    assert metric(pictures(30, 2), own)["cmmd"] > 1e-3
    assert metric.provenance()["sigma"] == 10.0
