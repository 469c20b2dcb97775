"""Blocks: shapes, padding, empty text, and what starts as the identity."""

import pytest
import torch
from torch import nn

from imagen.network.blocks import (
    AttentionPool,
    ConditioningEmbedding,
    CrossAttention,
    Downsample,
    GroupNorm,
    LogSNREmbedding,
    ResBlock,
    SelfAttention,
    Upsample,
    with_low_res,
)
from imagen.null_text import ZeroedText
from imagen.types import Conditioning, TextEmbedding


def text(lengths: list[int], padding: float = 0.0, padded_to: int = 5, width: int = 16) -> TextEmbedding:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(padded_to) < torch.tensor(lengths)[:, None]
    tokens = torch.randn(len(lengths), 20, width, generator=generator)[:, :padded_to]
    return TextEmbedding(tokens.masked_fill(~mask[:, :, None], padding), mask)


def randomize(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize(("resample", "side"), [(nn.Identity(), 8), (Upsample(), 16), (Downsample(), 4)])
def test_res_block_resamples(resample: nn.Module, side: int):
    block = ResBlock(8, 12, 16, resample, 1.0)
    assert block(torch.randn(2, 8, 8, 8), torch.randn(2, 16)).shape == (2, 12, side, side)


def test_res_block_starts_as_its_scaled_skip():
    x = torch.randn(2, 8, 4, 4)
    block = ResBlock(8, 8, 16, nn.Identity(), 0.5)
    torch.testing.assert_close(block(x, torch.randn(2, 16)), 0.5 * x)


def test_group_norm_scales_and_shifts_each_example():
    norm, x = GroupNorm(8), torch.randn(2, 8, 4, 4)
    scale, shift = torch.randn(2, 8), torch.randn(2, 8)
    want = norm(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    torch.testing.assert_close(norm(x, torch.cat([scale, shift], dim=1)), want)


@pytest.mark.parametrize("attention", [SelfAttention, CrossAttention])
def test_attention_ignores_padding_and_bears_empty_text(attention: type[nn.Module]):
    layer = randomize(attention(8, 2, 16, 1.0))
    x = torch.randn(2, 8, 4, 4)
    want = layer(x, text([3, 0]))
    assert want.isfinite().all()
    torch.testing.assert_close(layer(x, text([3, 0], padding=1e4, padded_to=9)), want)
    torch.testing.assert_close(layer(x, text([3, 0], padded_to=3)), want)


@pytest.mark.parametrize("attention", [SelfAttention, CrossAttention])
def test_attention_reads_the_text_and_starts_as_nothing(attention: type[nn.Module]):
    layer = attention(8, 2, 16, 1.0)
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(layer(x, text([3])), x)
    randomize(layer)
    assert not torch.allclose(layer(x, text([3])), layer(x, text([2])), atol=1e-3)


def test_pool_ignores_padding_and_order_and_bears_empty_text():
    pool = randomize(AttentionPool(16))
    want = pool(text([3, 0]))
    assert want.isfinite().all()
    torch.testing.assert_close(pool(text([3, 0], padding=-1e4, padded_to=9)), want)
    embedding = text([3])
    turned = TextEmbedding(embedding.tokens[:, [2, 0, 1]], embedding.mask[:, :3])
    torch.testing.assert_close(pool(turned), pool(text([3])))


def test_pool_bears_no_token_at_all():
    assert AttentionPool(16)(TextEmbedding(torch.zeros(1, 0, 16), torch.zeros(1, 0, dtype=torch.bool))).isfinite().all()


def test_logsnr_embedding_tells_levels_apart():
    embedding = LogSNREmbedding(32, 16)
    angles = torch.linspace(-20, 20, 401)[:, None] * embedding.frequencies
    features = torch.cat([angles.cos(), angles.sin()], dim=1)
    distance = torch.cdist(features, features) + torch.eye(401) * 100
    assert distance.min() > 0.3
    assert embedding(torch.zeros(3)).shape == (3, 16)


def test_conditioning_embedding_reads_the_low_res_level():
    embedding = ConditioningEmbedding(ZeroedText(), 8, 16, 16, True)
    low_res = torch.zeros(2, 3, 4, 4)
    a, tokens = embedding(torch.zeros(2), Conditioning(text([2, 1]), low_res, torch.tensor([0.0, 0.0])))
    b, _ = embedding(torch.zeros(2), Conditioning(text([2, 1]), low_res, torch.tensor([0.0, 5.0])))
    assert a.shape == (2, 16)
    assert tokens.tokens.shape == (2, 5, 16)
    torch.testing.assert_close(a[0], b[0])
    assert not torch.allclose(a[1], b[1])


def test_low_res_is_enlarged_and_concatenated():
    x, low_res = torch.randn(2, 3, 8, 8), torch.full((2, 3, 4, 4), 0.25)
    both = with_low_res(x, low_res)
    assert both.shape == (2, 6, 8, 8)
    torch.testing.assert_close(both[:, 3:], torch.full((2, 3, 8, 8), 0.25))
