"""What the text adds to the noise level's embedding: by attention, as a mean, or nothing."""

from functools import partial

import pytest
import torch
from small_text import randomize, text
from torch import nn

from imagen import build
from imagen.cli import CONF, compose
from imagen.errors import UserError
from imagen.text_pooling import (
    AttentionPool,
    AttentionPooling,
    MakeTextPooling,
    MeanPool,
    MeanPooling,
    NoPooling,
    TextPooling,
)
from imagen.types import Conditioning, TextEmbedding

ATTENTION = partial(AttentionPooling, head_channels=64)
POOLINGS = [ATTENTION, MeanPooling, NoPooling]


@pytest.mark.parametrize("make", POOLINGS)
def test_padding_and_order_change_nothing_and_empty_text_is_borne(make: MakeTextPooling):
    pooling = randomize(make(16, True))
    want = pooling(text([3, 0]))
    assert want.shape == (2, 16)
    assert want.isfinite().all()
    torch.testing.assert_close(pooling(text([3, 0], padding=-1e4, padded_to=9)), want)
    embedding = text([3])
    turned = TextEmbedding(embedding.tokens[:, [2, 0, 1]], embedding.mask[:, :3])
    torch.testing.assert_close(pooling(turned), pooling(text([3])))
    nothing = TextEmbedding(torch.zeros(1, 0, 16), torch.zeros(1, 0, dtype=torch.bool))
    assert pooling(nothing).isfinite().all()


def test_the_mean_is_that_of_the_real_tokens():
    prompt = text([3, 1], padding=9.0)
    want = torch.stack([prompt.tokens[0, :3].mean(0), prompt.tokens[1, 0]])
    torch.testing.assert_close(MeanPool(16, False)(prompt), want)


def test_attention_is_a_weighted_mean_of_the_tokens_and_their_mean():
    pool = AttentionPool(16, False, 64)
    with torch.no_grad():
        pool.q.weight.zero_()  # equal weights
        pool.q.bias.zero_()
        pool.kv.weight[16:] = torch.eye(16)  # values are the tokens themselves
        pool.kv.bias[16:] = 0
    prompt = text([3, 1])
    torch.testing.assert_close(pool(prompt), MeanPool(16, False)(prompt))
    with torch.no_grad():
        pool.q.bias.normal_(std=3.0, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(pool(prompt)[0], MeanPool(16, False)(prompt)[0], atol=0.1)


@pytest.mark.parametrize(("width", "heads"), [(128, 2), (96, 1), (16, 1)])
def test_heads_have_the_channels_asked_for_where_they_divide_the_width(width: int, heads: int):
    assert AttentionPool(width, True, 64).num_heads == heads
    with pytest.raises(UserError, match="head_channels=0"):
        AttentionPooling(width, True, head_channels=0)


@pytest.mark.parametrize("make", [ATTENTION, MeanPooling])
def test_pooled_text_tells_and_its_layer_norm_can_be_switched_off(make: MakeTextPooling):
    pooling = randomize(make(16, True))
    assert not torch.allclose(pooling(text([3])), pooling(text([2])), atol=1e-3)
    assert len([m for m in pooling.modules() if isinstance(m, nn.LayerNorm)]) == 2  # of tokens, and of their pool
    assert not [m for m in make(16, False).modules() if isinstance(m, nn.LayerNorm)]


def test_no_pooling_is_nothing():
    nothing = NoPooling(16, True)
    assert not list(nothing.parameters())
    assert not nothing(text([3, 1])).any()
    assert not nothing.reads_text


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "text_pooling").glob("*.yaml")))
@pytest.mark.parametrize("experiment", ["toy", "toy_sr32"])
def test_every_option_is_one_override_of_any_network(experiment: str, option: str):
    cfg = compose("train", [f"experiment={experiment}", f"text_pooling={option}"])
    network = build.build_network(cfg)
    (pooling,) = (m for m in network.modules() if isinstance(m, TextPooling))
    assert type(pooling).__name__ == cfg.text_pooling["_target_"].rpartition(".")[2]


def test_text_that_nothing_reads_is_refused():
    unread = ["experiment=toy", "network.text_resolutions=[]"]
    assert build.build_module(compose("train", [*unread, "text_pooling=mean"]))
    with pytest.raises(UserError, match=r"text would not be read.*text_pooling.*attention.*caption_dropout=1"):
        build.build_module(compose("train", [*unread, "text_pooling=none"]))
    with pytest.raises(UserError, match=r"caption_dropout=1\.0 leaves the network's weights for text untrained"):
        build.build_module(compose("train", [*unread, "text_pooling=mean", "caption_dropout=1.0"]))


@pytest.mark.parametrize(
    ("experiment", "unread"), [("toy", "text_resolutions=[]"), ("toy_sr32", "cross_attention=[false,false]")]
)
def test_a_network_without_text_has_no_weights_for_it_and_draws_the_same_whatever_the_prompt(experiment, unread):
    words = [f"experiment={experiment}", f"network.{unread}", "text_pooling=none", "caption_dropout=1.0"]
    cfg = compose("train", words)
    network = build.build_module(cfg).denoiser.network
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    side, low = cfg.resolution, cfg.low_resolution
    x, logsnr = torch.randn(2, 3, side, side), torch.zeros(2)
    small = {"low_res": torch.randn(2, 3, low, low), "low_res_logsnr": logsnr} if low else {}
    mask = torch.ones(2, 4, dtype=torch.bool)
    one, other = (
        network(x, logsnr, Conditioning(TextEmbedding(torch.randn(2, 4, cfg.text_encoder.width), mask), **small))
        for _ in range(2)
    )
    assert torch.equal(one, other)
    one.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
