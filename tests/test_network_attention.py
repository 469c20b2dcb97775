"""Attention layers: padding, empty text, what starts as the identity, and what their options do."""

import functools
from collections.abc import Callable

import pytest
import torch
from small_text import randomize, text
from torch import nn

from imagen.network.attention import CrossAttention, HeadNorm, SelfAttention

PAPER = {"skip_scale": 1.0, "text_norm": True, "qk_norm": False}
LAYERS = [
    functools.partial(kind, 8, 2, 16, **(PAPER | {"qk_norm": qk_norm}))
    for kind in (SelfAttention, CrossAttention)
    for qk_norm in (False, True)
]
Make = Callable[[], nn.Module]
X = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("make", LAYERS)
def test_attention_ignores_padding_and_bears_empty_text(make: Make):
    layer = randomize(make())
    want = layer(X, text([3, 0]))
    assert want.isfinite().all()
    torch.testing.assert_close(layer(X, text([3, 0], padding=1e4, padded_to=9)), want)
    torch.testing.assert_close(layer(X, text([3, 0], padded_to=3)), want)


@pytest.mark.parametrize("make", LAYERS)
def test_attention_reads_the_text_and_starts_as_nothing(make: Make):
    layer, x = make(), X[:1]
    torch.testing.assert_close(layer(x, text([3])), x)
    randomize(layer)
    assert not torch.allclose(layer(x, text([3])), layer(x, text([2])), atol=1e-3)


def test_self_attention_over_the_picture_alone_reads_no_text():
    layer = randomize(SelfAttention(8, 2, 16, reads_text=False, **PAPER))
    assert torch.equal(layer(X, text([3, 1])), layer(X, text([1, 0])))
    joint = randomize(SelfAttention(8, 2, 16, reads_text=True, **PAPER))
    joint.load_state_dict(layer.state_dict(), strict=False)
    torch.testing.assert_close(layer(X, text([3, 1])), joint(X, text([0, 0])))


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
def test_text_layer_norm_makes_attention_blind_to_the_scale_of_the_text(kind: type[nn.Module]):
    prompt = text([3, 2])
    louder = text([3, 2])
    louder.tokens *= 10.0
    layer = randomize(kind(8, 2, 16, **PAPER))
    torch.testing.assert_close(layer(X, louder), layer(X, prompt), rtol=1e-3, atol=1e-4)
    plain = randomize(kind(8, 2, 16, **(PAPER | {"text_norm": False})))
    assert not torch.allclose(plain(X, louder), plain(X, prompt), atol=1e-2)
    assert not [m for m in plain.modules() if isinstance(m, nn.LayerNorm)]


def test_head_norm_has_its_closed_form():
    x = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(3))
    norm = HeadNorm(4)
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(2, 5, 3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm(7.0 * x), norm(x), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([1.0, 2.0, 0.0, -1.0]))
    torch.testing.assert_close(norm(x), x / x.square().mean(-1, keepdim=True).sqrt() * norm.scale, rtol=1e-4, atol=1e-5)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
def test_query_key_norm_makes_attention_blind_to_the_scale_of_its_queries_and_keys(kind: type[nn.Module]):
    def with_loud_queries(qk_norm: bool) -> tuple[torch.Tensor, torch.Tensor]:
        layer = randomize(kind(8, 2, 16, **(PAPER | {"qk_norm": qk_norm})))
        before = layer(X, text([3, 2]))
        rows = slice(0, 8)  # of the queries, in the first 8 rows of either layer's projection
        projection = layer.qkv if isinstance(layer, SelfAttention) else layer.q
        assert isinstance(projection, nn.Linear)
        with torch.no_grad():
            projection.weight[rows] *= 5.0
            projection.bias[rows] *= 5.0
        return before, layer(X, text([3, 2]))

    torch.testing.assert_close(*with_loud_queries(True), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(*with_loud_queries(False), atol=1e-2)
