"""The CPU forms of normalization and attention against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen.network.kernels import attend, conv3x3, group_norm


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("mean", "silu"), [(0.0, False), (30.0, False), (1.0, True)])
def test_group_norm_is_torchs(layout: torch.memory_format, mean: float, silu: bool):
    x = (random(3, 12, 5, 4, seed=0) + mean).contiguous(memory_format=layout).requires_grad_()
    gain, bias = random(3, 12, seed=1).requires_grad_(), random(3, 12, seed=2).requires_grad_()
    upstream = random(3, 12, 5, 4, seed=3)

    out = group_norm(x, 4, gain, bias, silu)
    want = (F.group_norm(x.double(), 4) * gain[:, :, None, None] + bias[:, :, None, None]).float()
    want = F.silu(want) if silu else want

    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)
    got = torch.autograd.grad((out * upstream).sum(), (x, gain, bias))
    expected = torch.autograd.grad((want * upstream).sum(), (x, gain, bias))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-4)


def test_group_norm_in_bf16_keeps_a_large_mean():
    x = (random(2, 8, 16, 16, seed=0) + 20.0).bfloat16()
    ones = torch.ones(2, 8)
    out = group_norm(x, 4, ones, 0 * ones, False)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), F.group_norm(x.float(), 4), rtol=0.02, atol=0.02)


def test_group_norm_of_a_flat_picture_is_the_bias():
    out = group_norm(torch.full((1, 4, 2, 2), 3.0), 2, torch.ones(1, 4), torch.full((1, 4), 0.5), False)
    torch.testing.assert_close(out, torch.full((1, 4, 2, 2), 0.5))


def test_group_norm_elsewhere_keeps_the_dtype_too():
    x, gain = torch.empty(2, 8, 4, 4, dtype=torch.bfloat16, device="meta"), torch.empty(2, 8, device="meta")
    assert group_norm(x, 4, gain, gain, True).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silu_with_the_norm_is_silu_after_it_to_the_bit_and_keeps_nothing_more(dtype: torch.dtype):
    upstream = random(2, 8, 16, 16, seed=3).to(dtype)
    found, kept = [], []
    for fused in (False, True):
        x = random(2, 8, 16, 16, seed=0).to(dtype).requires_grad_()
        gain, bias = random(2, 8, seed=1).requires_grad_(), random(2, 8, seed=2).requires_grad_()
        of_a_picture: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=of_a_picture: (to.append(t), t)[1], lambda t: t):
            out = group_norm(x, 4, gain, bias, fused)
            out = out if fused else F.silu(out)
        found.append((out, *torch.autograd.grad(out, (x, gain, bias), upstream)))
        kept.append(sum(tensor.numel() == x.numel() for tensor in of_a_picture))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert kept == [2, 1]


def test_attend_is_torchs():
    q, k, v = random(2, 6, 3, 4, seed=0), random(2, 9, 3, 4, seed=1), random(2, 9, 3, 4, seed=2)
    visible = torch.arange(9) < torch.tensor([[9], [4]])
    want = F.scaled_dot_product_attention(*(a.transpose(1, 2) for a in (q, k, v)), attn_mask=visible[:, None, None])
    torch.testing.assert_close(attend(q, k, v, visible), want.transpose(1, 2).flatten(2))


def test_attend_sees_no_hidden_key():
    q, k, v = random(1, 2, 1, 4, seed=0), random(1, 3, 1, 4, seed=1), random(1, 3, 1, 4, seed=2)
    visible = torch.tensor([[True, True, False]])
    torch.testing.assert_close(attend(q, k, v, visible), attend(q, k[:, :2], v[:, :2], visible[:, :2]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_wide_convolution_is_torchs(layout: torch.memory_format):
    """At fewer pixels than channels the weight's gradient is a product of its own, under autocast as in training."""
    x = random(2, 48, 3, 5, seed=0).contiguous(memory_format=layout).requires_grad_()
    weight = random(16, 48, 3, 3, seed=1).contiguous(memory_format=layout).requires_grad_()
    bias, upstream = random(16, seed=2).requires_grad_(), random(2, 16, 3, 5, seed=3)

    with torch.autocast("cpu", torch.bfloat16):
        out = conv3x3(x, weight, bias)
        want = F.conv2d(x, weight, bias, padding=1)

    assert "WideConv" in type(out.grad_fn).__name__
    torch.testing.assert_close(out, want)
    got = torch.autograd.grad((out * upstream).sum(), (x, weight, bias))
    expected = torch.autograd.grad((want * upstream).sum(), (x, weight, bias))
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


def test_a_wide_convolution_of_frozen_weights_has_a_gradient_of_its_input_alone():
    x = random(1, 32, 4, 4, seed=0).bfloat16().requires_grad_()
    weight, bias = random(8, 32, 3, 3, seed=1).bfloat16(), random(8, seed=2).bfloat16()
    (got,) = torch.autograd.grad(conv3x3(x, weight, bias).sum(), x)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, bias, padding=1).sum(), x)
    torch.testing.assert_close(got, expected)


def test_attend_without_a_mask_sees_every_key():
    q, k, v = random(2, 2, 1, 4, seed=0), random(2, 3, 1, 4, seed=1), random(2, 3, 1, 4, seed=2)
    torch.testing.assert_close(attend(q, k, v, None), attend(q, k, v, torch.ones(2, 3, dtype=torch.bool)))
