"""The conditioning: pooled text and its options, noise levels, the low-resolution picture."""

import pytest
import torch
from small_text import randomize, text
from torch import nn

from imagen.errors import UserError
from imagen.network.conditioning import (
    AttentionPool,
    ConditioningEmbedding,
    LogSNREmbedding,
    MeanPool,
    pooled_text,
    with_low_res,
)
from imagen.null_text import ZeroedText
from imagen.types import Conditioning, TextEmbedding

POOLS = [AttentionPool, MeanPool]


@pytest.mark.parametrize("kind", POOLS)
def test_pool_ignores_padding_and_order_and_bears_empty_text(kind: type[nn.Module]):
    pool = randomize(kind(16, True))
    want = pool(text([3, 0]))
    assert want.isfinite().all()
    torch.testing.assert_close(pool(text([3, 0], padding=-1e4, padded_to=9)), want)
    embedding = text([3])
    turned = TextEmbedding(embedding.tokens[:, [2, 0, 1]], embedding.mask[:, :3])
    torch.testing.assert_close(pool(turned), pool(text([3])))


@pytest.mark.parametrize("kind", POOLS)
def test_pool_bears_no_token_at_all(kind: type[nn.Module]):
    nothing = TextEmbedding(torch.zeros(1, 0, 16), torch.zeros(1, 0, dtype=torch.bool))
    assert kind(16, True)(nothing).isfinite().all()


def test_mean_pool_is_the_mean_of_the_real_tokens():
    prompt = text([3, 1], padding=9.0)
    want = torch.stack([prompt.tokens[0, :3].mean(0), prompt.tokens[1, 0]])
    torch.testing.assert_close(MeanPool(16, False)(prompt), want)


@pytest.mark.parametrize("text_pooling", ["attention", "mean"])
def test_pooled_text_tells_and_its_layer_norm_can_be_switched_off(text_pooling: str):
    pooled = randomize(pooled_text(text_pooling, 16, text_norm=True, attends=False))
    assert not torch.allclose(pooled(text([3])), pooled(text([2])), atol=1e-3)
    assert len([m for m in pooled.modules() if isinstance(m, nn.LayerNorm)]) == 2  # of tokens, and of their pool
    plain = pooled_text(text_pooling, 16, text_norm=False, attends=False)
    assert not [m for m in plain.modules() if isinstance(m, nn.LayerNorm)]


def test_no_pooled_text_is_nothing():
    nothing = pooled_text("none", 16, text_norm=True, attends=True)
    assert not list(nothing.parameters())
    assert not nothing(text([3, 1])).any()


def test_what_cannot_pool_is_refused():
    with pytest.raises(UserError, match=r"text_pooling=max must be one of attention, mean, none"):
        pooled_text("max", 16, text_norm=True, attends=True)
    with pytest.raises(UserError, match=r"text_pooling=none leaves the text unread"):
        pooled_text("none", 16, text_norm=True, attends=False)


def test_logsnr_embedding_tells_levels_apart():
    embedding = LogSNREmbedding(32, 16)
    angles = torch.linspace(-20, 20, 401)[:, None] * embedding.frequencies
    features = torch.cat([angles.cos(), angles.sin()], dim=1)
    distance = torch.cdist(features, features) + torch.eye(401) * 100
    assert distance.min() > 0.3
    assert embedding(torch.zeros(3)).shape == (3, 16)


def test_conditioning_embedding_reads_the_low_res_level():
    embedding = ConditioningEmbedding(
        ZeroedText(), 8, 16, 16, low_res=True, text_pooling="attention", text_norm=True, attends=True
    )
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
