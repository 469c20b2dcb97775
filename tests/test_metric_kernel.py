"""Kernel distances: the closed forms between normal distributions, and a few points by hand."""

import math

import pytest
import torch
from pictures import random_pictures
from small_clip import save_small_clip
from test_metric_frechet import Means

from imagen.errors import UserError
from imagen.metric import kernel
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


class Spread(Means):
    """Channels' means from -5 to 5: far enough apart for the cube to tell."""

    def forward(self, images):
        return 10 * super().forward(images) - 5


class KIDOnSpread(KID):
    def make_extractor(self):
        return Spread()


def normal_pictures(mean, root, seed, count=2000):
    """Pictures of one colour each; ``Spread`` of them is of N(mean, root root^T), but for rounding to bytes."""
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    colours = (torch.tensor(mean) + noise @ torch.tensor(root).T + 5) / 10
    images = (colours * 255).round().clamp(0, 255).to(torch.uint8)[:, :, None, None].expand(-1, -1, 2, 2)
    return InMemory(images.contiguous(), [""] * count)


def moments(mean, root):
    """E 1, E x_i, E x_i x_j and E x_i x_j x_k of N(mean, root root^T)."""
    m, r = torch.tensor(mean), torch.tensor(root)
    pairs = torch.einsum("i,jl,kl->ijk", m, r, r)
    third = torch.einsum("i,j,k->ijk", m, m, m) + pairs + pairs.permute(1, 0, 2) + pairs.permute(1, 2, 0)
    return [torch.tensor(1.0), m, torch.outer(m, m) + r @ r.T, third]


def mean_kernel(a, b):
    """E (x . y / 3 + 1)^3 of independent x and y: the binomial theorem, and E (x . y)^p = E x^p . E y^p."""
    terms = enumerate(zip(moments(*a), moments(*b), strict=True))
    return sum(math.comb(3, p) * (x * y).sum().item() / 3**p for p, (x, y) in terms)


def test_kid_has_the_closed_form_of_normal_distributions():
    a = ([0.8, 0.0, -0.4], [[0.8, 0.0, 0.0], [0.3, 0.6, 0.0], [0.0, -0.2, 0.7]])
    b = ([-0.4, 0.6, 0.2], [[0.6, 0.0, 0.0], [-0.2, 0.8, 0.0], [0.3, 0.0, 0.5]])
    # 3.42, and 1.68 were the kernel squared; over draws KID's standard deviation is 0.10
    exact = mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
    metric = KIDOnSpread(weights=None, resize="legacy", subsets=1, subset_size=2000, batch_size=512, seed=0)
    assert metric(normal_pictures(*a, seed=1), normal_pictures(*b, seed=2))["kid"] == pytest.approx(exact, abs=0.5)


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


class UnitColours(Means):
    """In CLIP's place: a red picture is (1, 0, 0) once normalised, a green one (0, 1, 0)."""

    def __init__(self, path, size, mean, std):
        super().__init__()
        self.register_buffer("place", torch.zeros(1))


def test_cmmd_is_a_thousand_times_the_discrepancy_of_unit_embeddings(monkeypatch):
    """One red and one green against two red: (1 + q) / 2 + 1 - (1 + q) with q = exp(-2 / (2 10^2)) = 0.9900498."""
    monkeypatch.setattr(kernel, "VisionTransformer", UnitColours)
    red, green = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    red[0], green[1] = 200, 100
    drawn, real = InMemory(torch.stack([red, green]), ["", ""]), InMemory(torch.stack([red, red]), ["", ""])
    metric = CMMD(path="none", size=4, sigma=10.0, batch_size=2)
    assert metric(drawn, real)["cmmd"] == pytest.approx(4.9750831, abs=1e-6)


def test_cmmd_of_a_set_with_itself_is_zero_and_of_darker_pictures_is_not(tmp_path):
    metric = CMMD(path=str(save_small_clip(tmp_path)), size=16, sigma=10.0, batch_size=16)
    own = pictures(30)
    assert metric(own, own)["cmmd"] == pytest.approx(0.0, abs=1e-6)
    assert metric(pictures(30, 2), own)["cmmd"] > 1e-3
    assert metric.provenance()["sigma"] == 10.0
