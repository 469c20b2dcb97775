"""Thresholds: in-range pictures are left alone, each example has its own percentile, megapixels pass."""

import pytest
import torch
from oracle import conditioning

from imagen.errors import UserError
from imagen.threshold import DynamicThreshold, NoThreshold, StaticThreshold, Threshold, quantile
from imagen.types import Conditioning, Prediction


def apply(threshold: Threshold, x0: torch.Tensor) -> torch.Tensor:
    def denoise(x_t: torch.Tensor, logsnr: torch.Tensor, cond: Conditioning) -> Prediction:
        return Prediction(x0, renoise_x0=9 * x_t)

    prediction = threshold(denoise)(x0, torch.zeros(len(x0)), conditioning(len(x0)))
    assert prediction.renoise_x0 is not None
    assert torch.equal(prediction.renoise_x0, 9 * x0)  # what is renoised is not its to change
    return prediction.x0


def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))


every_threshold = pytest.mark.parametrize(
    "threshold",
    [
        NoThreshold(),
        StaticThreshold(),
        DynamicThreshold(percentile=0.995, cap=None),
        DynamicThreshold(percentile=0.995, cap=1.5),
    ],
    ids=["none", "static", "dynamic", "dynamic_capped"],
)


@every_threshold
def test_pictures_in_range_are_left_alone_to_the_bit(threshold: Threshold) -> None:
    x0 = normal(2, 3, 8, 8).tanh()
    x0[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    assert torch.equal(apply(threshold, x0), x0)


def test_static_clips() -> None:
    x0 = normal(2, 3, 8, 8, scale=3)
    assert torch.equal(apply(StaticThreshold(), x0), x0.clamp(-1, 1))


def test_dynamic_is_the_paper_s_formula_for_each_example() -> None:
    x0 = normal(3, 3, 16, 16) * torch.tensor([0.1, 1.0, 5.0])[:, None, None, None]
    out = apply(DynamicThreshold(percentile=0.9, cap=None), x0)
    for i in range(3):
        s = max(1.0, x0[i].abs().flatten().quantile(0.9).item())
        assert torch.allclose(out[i], x0[i].clamp(-s, s) / s, atol=1e-6)


def test_dynamic_at_1_scales_without_clipping() -> None:
    x0 = normal(2, 3, 8, 8, scale=2)
    largest = x0.abs().amax((1, 2, 3), keepdim=True)
    assert torch.allclose(apply(DynamicThreshold(percentile=1.0, cap=None), x0), x0 / largest)


def test_dynamic_is_static_while_few_pixels_are_out_of_range() -> None:
    x0 = normal(1, 3, 20, 20).tanh()
    x0[0, 0, 0, :3] = torch.tensor([7.0, -2.0, 1.5])  # 3 of 1,200: fewer than the upper half percent
    assert torch.equal(apply(DynamicThreshold(percentile=0.995, cap=None), x0), apply(StaticThreshold(), x0))


def test_a_cap_is_the_largest_s() -> None:
    x0 = normal(3, 3, 16, 16) * torch.tensor([0.1, 0.8, 5.0])[:, None, None, None]
    free, capped = (apply(DynamicThreshold(percentile=0.9, cap=cap), x0) for cap in (None, 1.5))
    assert torch.equal(capped[:2], free[:2])  # their s is below the cap
    assert torch.allclose(capped[2], x0[2].clamp(-1.5, 1.5) / 1.5)
    assert torch.equal(apply(DynamicThreshold(percentile=0.9, cap=1.0), x0), apply(StaticThreshold(), x0))


def test_one_example_s_threshold_ignores_its_neighbours() -> None:
    x0 = normal(3, 3, 8, 8, scale=4)
    together = apply(DynamicThreshold(percentile=0.95, cap=None), x0)
    assert torch.equal(apply(DynamicThreshold(percentile=0.95, cap=None), x0[1:2]), together[1:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_kept_and_the_percentile_taken_in_float32(dtype: torch.dtype) -> None:
    x0 = normal(1, 3, 8, 8, scale=3).to(dtype)
    out = apply(DynamicThreshold(percentile=0.99, cap=None), x0)
    s = x0.float().abs().quantile(0.99)
    assert out.dtype == dtype
    assert torch.allclose(out.float(), x0.float().clamp(-s, s) / s, atol=1e-2)
    assert out.abs().max() <= 1


@pytest.mark.parametrize("q", [0.01, 0.5, 0.9, 0.995, 0.9999, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 3 * 16 * 16])
def test_quantile_is_torch_s(q: float, n: int) -> None:
    values = normal(3, n)
    assert torch.allclose(quantile(values, q), values.quantile(q, dim=1), atol=1e-6)


def test_a_batch_beyond_sixteen_million_pixels() -> None:
    values = torch.linspace(0, 1, 3 * 1024**2).expand(6, -1)
    assert torch.allclose(quantile(values, 0.995), torch.full((6,), 0.995), atol=1e-5)


def test_unfit_values_are_named() -> None:
    with pytest.raises(UserError, match="percentile=99"):
        DynamicThreshold(percentile=99.5, cap=None)
    with pytest.raises(UserError, match=r"cap=0\.5 must be at least 1"):
        DynamicThreshold(percentile=0.995, cap=0.5)
