"""The conditioning: noise levels, pooled text, the low-resolution picture."""

import torch
from small_text import text

from imagen.network.conditioning import ConditioningEmbedding, LogSNREmbedding, with_low_res
from imagen.null_text import ZeroedText
from imagen.text_pooling import MeanPooling
from imagen.types import Conditioning


def test_logsnr_embedding_tells_levels_apart():
    embedding = LogSNREmbedding(32, 16)
    angles = torch.linspace(-20, 20, 401)[:, None] * embedding.frequencies
    features = torch.cat([angles.cos(), angles.sin()], dim=1)
    distance = torch.cdist(features, features) + torch.eye(401) * 100
    assert distance.min() > 0.3
    assert embedding(torch.zeros(3)).shape == (3, 16)


def test_conditioning_embedding_reads_the_low_res_level():
    embedding = ConditioningEmbedding(ZeroedText(), MeanPooling, 8, 16, 16, low_res=True, text_norm=True, attends=True)
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
