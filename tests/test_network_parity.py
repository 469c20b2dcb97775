"""Block by block against diffusers' parts of DeepFloyd's IF, where the maths is the same."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor
from diffusers.models.embeddings import TextTimeEmbedding
from diffusers.models.resnet import ResnetBlock2D
from small_text import randomize, text
from torch import Tensor, nn

from imagen.network.attention import CrossAttention, SelfAttention, TextKeys
from imagen.network.blocks import Downsample, ResBlock, Upsample
from imagen.text_pooling import AttentionPool
from imagen.types import TextEmbedding

EPSILON = 1e-5  # of every norm here; diffusers' default is another


def copied(theirs: nn.Module, ours: dict[str, Tensor]) -> nn.Module:
    theirs.load_state_dict(ours, strict=True)
    return theirs.eval()


@pytest.mark.parametrize("out_channels", [32, 48])
@pytest.mark.parametrize("skip_scale", [1.0, 0.5**0.5])
@pytest.mark.parametrize(
    ("resample", "theirs"), [(nn.Identity(), {}), (Upsample(), {"up": True}), (Downsample(), {"down": True})]
)
def test_res_block(out_channels: int, skip_scale: float, resample: nn.Module, theirs: dict[str, bool]):
    block = randomize(ResBlock(32, out_channels, 16, resample, skip_scale))
    assert isinstance(block, ResBlock)
    reference = ResnetBlock2D(
        in_channels=32,
        out_channels=out_channels,
        temb_channels=16,
        groups=block.norm1.num_groups,
        groups_out=block.norm2.num_groups,
        eps=EPSILON,
        time_embedding_norm="scale_shift",
        skip_time_act=True,  # the embedding comes after its SiLU
        output_scale_factor=1 / skip_scale,
        **theirs,
    )
    names = {"scale_shift": "time_emb_proj", "skip": "conv_shortcut"}
    state = {rename(name, names): value for name, value in block.state_dict().items()}
    x, emb = torch.randn(2, 32, 8, 8), torch.randn(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(block(x, emb), copied(reference, state)(x, emb), rtol=1e-5, atol=1e-5)


def rename(name: str, names: dict[str, str]) -> str:
    first, _, last = name.partition(".")
    return f"{names.get(first, first)}.{last}"


def reference_attention(groups: int, only_cross: bool) -> Attention:
    return Attention(
        query_dim=32,
        cross_attention_dim=32,
        added_kv_proj_dim=32,
        heads=4,
        dim_head=8,
        bias=True,
        norm_num_groups=groups,
        cross_attention_norm="layer_norm",
        only_cross_attention=only_cross,
        upcast_softmax=True,
        eps=EPSILON,
        processor=AttnAddedKVProcessor(),
    )


def common_state(layer: SelfAttention | CrossAttention) -> dict[str, Tensor]:
    own = layer.state_dict()
    state = {"group_norm.weight": own["norm.weight"], "group_norm.bias": own["norm.bias"]}
    for end in ("weight", "bias"):
        state[f"norm_cross.{end}"] = own[f"text.norm.{end}"]
        state[f"add_k_proj.{end}"], state[f"add_v_proj.{end}"] = own[f"text.kv.{end}"].chunk(2)
        state[f"to_out.0.{end}"] = own[f"out.{end}"]
    return state


def test_self_attention_with_text_in_its_keys_and_values():
    layer = randomize(SelfAttention(32, 4, 32, skip_scale=1.0, text_norm=True, qk_norm=False))
    assert isinstance(layer, SelfAttention)
    state = common_state(layer)
    for end in ("weight", "bias"):
        qkv = layer.state_dict()[f"qkv.{end}"].chunk(3)
        state |= {f"to_{name}.{end}": part for name, part in zip("qkv", qkv, strict=True)}
    reference = copied(reference_attention(layer.norm.num_groups, only_cross=False), state)
    x, prompt = torch.randn(2, 32, 4, 4), text([5, 3], width=32)
    bias = torch.zeros(2, 1, 5).masked_fill(~prompt.mask[:, None], float("-inf"))  # theirs puts the text first
    with torch.no_grad():
        want = reference(x, encoder_hidden_states=prompt.tokens, attention_mask=bias)
        torch.testing.assert_close(layer(x, prompt), want, rtol=1e-5, atol=1e-5)


def test_cross_attention_whose_null_key_is_one_more_token_of_theirs():
    layer = randomize(CrossAttention(32, 4, 32, skip_scale=1.0, text_norm=True, qk_norm=False))
    assert isinstance(layer, CrossAttention)
    longer = text([5, 5], width=32)
    prompt = TextEmbedding(longer.tokens[:, 1:], longer.mask[:, 1:])
    longer.tokens[:, 0] = longer.tokens[0, 0]
    own = layer.state_dict()
    state = common_state(layer) | {"to_q.weight": own["q.weight"], "to_q.bias": own["q.bias"]}
    reference = copied(reference_attention(layer.norm.num_groups, only_cross=True), state)
    x = torch.randn(2, 32, 4, 4)
    with torch.no_grad():
        assert isinstance(layer.text, TextKeys)
        layer.null_kv.copy_(layer.text.kv(layer.text.norm(longer.tokens[:1, :1])))
        want = reference(x, encoder_hidden_states=longer.tokens)
        torch.testing.assert_close(layer(x, prompt), want, rtol=1e-5, atol=1e-5)


def test_attention_pool_of_the_text():
    """Theirs has a learned vector beside the mean that asks (zero here); what follows the pool is another thing."""
    pool = randomize(AttentionPool(32, True, 8))
    assert isinstance(pool, AttentionPool)
    own = pool.state_dict()
    state = {f"norm1.{end}": own[f"norm.{end}"] for end in ("weight", "bias")}
    state["pool.positional_embedding"] = torch.zeros(1, 32)
    for end in ("weight", "bias"):
        state[f"pool.q_proj.{end}"] = own[f"q.{end}"]
        state[f"pool.k_proj.{end}"], state[f"pool.v_proj.{end}"] = own[f"kv.{end}"].chunk(2)
    reference = TextTimeEmbedding(32, 24, num_heads=4)
    assert set(reference.load_state_dict(state, strict=False).missing_keys) == {
        f"{layer}.{end}" for layer in ("proj", "norm2") for end in ("weight", "bias")
    }
    prompt = text([5, 5], width=32)  # theirs knows no padding
    with torch.no_grad():
        want = reference.pool(reference.norm1(prompt.tokens))
        torch.testing.assert_close(pool(prompt), want, rtol=1e-5, atol=1e-5)
