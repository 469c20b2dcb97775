"""The Efficient U-Net: size at the paper's scale, where its work is done, sizes, padding, layouts, compilation."""

import subprocess
import sys
import textwrap
import time
from functools import partial
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from imagen.cli import CONF, compose
from imagen.errors import UserError
from imagen.network.attention import CrossAttention, HeadNorm, SelfAttention
from imagen.network.blocks import ResBlock
from imagen.network.efficient_unet import EfficientUNet
from imagen.null_text import ZeroedText
from imagen.text_pooling import AttentionPooling, MeanPooling, NoPooling
from imagen.types import Conditioning, TextEmbedding

SMALL: dict[str, Any] = {
    "text_width": 12,
    "text_norm": True,
    "low_res": True,
    "out_channels": 3,
    "patch_size": 1,
    "channels": [8, 16],
    "strides": [2, 2],
    "downsample_first": True,
    "num_res_blocks": [1, 2],
    "self_attention": [False, True],
    "cross_attention": [False, True],
    "num_heads": 2,
    "qk_norm": False,
    "emb_width": 32,
    "skip_scale": 0.5**0.5,
    "long_skip_scale": 1.0,
    "long_skip_concat": False,
    "input_skip": False,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"patch_size": 2, "strides": [1, 2], "input_skip": True},
    {"out_channels": 6, "input_skip": True},
    {"long_skip_concat": True, "long_skip_scale": 0.5**0.5, "skip_scale": 1.0},
    {"self_attention": [False, False]},
    {"strides": [1, 1], "num_res_blocks": [0, 1]},
    {"downsample_first": False},
    {"downsample_first": False, "long_skip_concat": True, "strides": [2, 1], "qk_norm": True},
    {"text_pooling": MeanPooling, "text_norm": False},
    {"text_pooling": NoPooling, "qk_norm": True},
]


ATTENTION = partial(AttentionPooling, head_channels=64)


def built(values: dict[str, Any]) -> EfficientUNet:
    """The network of these hyperparameters and, where they name none, the paper's text pooling."""
    pooling = values.get("text_pooling", ATTENTION)
    return EfficientUNet(
        ZeroedText(), pooling, **{key: value for key, value in values.items() if key != "text_pooling"}
    )


def paper(option: str, **changes: Any) -> EfficientUNet:
    node: Any = OmegaConf.load(CONF / "network" / f"{option}.yaml")
    del node["_target_"]
    node["text_width"] = 4096
    values: Any = OmegaConf.to_container(node)
    with torch.device("meta"):
        return built(values | changes)


def small(**changes: Any) -> EfficientUNet:
    """A small network whose zero-initialised layers are given weights, so that every part tells in the output."""
    generator = torch.Generator().manual_seed(0)
    network = built(SMALL | changes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(padded_to: int = 5, padding: float = 0.0, side: int = 16) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(padded_to) < torch.tensor([[4], [2], [0]])
    tokens = torch.randn(3, 20, 12, generator=generator)[:, :padded_to].masked_fill(~mask[:, :, None], padding)
    x = torch.randn(3, 3, side, side, generator=generator)
    low_res = torch.randn(3, 3, side // 4, side // 4, generator=generator)
    cond = Conditioning(TextEmbedding(tokens, mask), low_res, torch.tensor([4.0, 1.0, -2.0]))
    return x, torch.tensor([-9.0, 0.0, 9.0]), cond


@pytest.mark.parametrize(("option", "millions"), [("efficient_unet", 443), ("efficient_unet_sr1024", 439)])
def test_paper_sizes(option: str, millions: int):
    paper(option, channels=[8, 8, 8, 8])  # torch loads its meta kernels once
    start = time.process_time()
    network = paper(option)
    assert time.process_time() - start < 1.0
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions
    assert network.stride == 16
    assert sum(isinstance(m, ResBlock) for m in network.modules()) == 2 * (2 + 4 + 8 + 8)


@pytest.mark.parametrize(
    ("option", "present", "absent"),
    [("efficient_unet", SelfAttention, CrossAttention), ("efficient_unet_sr1024", CrossAttention, SelfAttention)],
)
def test_attention_stands_once_at_the_end_of_the_deepest_blocks(option: str, present: type, absent: type):
    network = paper(option)
    assert [name for name, m in network.named_modules() if isinstance(m, present)] == [
        "down.3.attentions.0",
        "up.3.attentions.0",
    ]
    assert all(m.num_heads == 8 for m in network.modules() if isinstance(m, SelfAttention | CrossAttention))
    assert not [m for m in network.modules() if isinstance(m, absent)]


def test_blocks_work_after_the_stride_and_before_the_upsampling():
    network = small()
    sides: dict[str, int] = {}

    def record(name: str):
        return lambda _module, _inputs, out: sides.update({name: out.shape[-1]})

    for name, module in network.named_modules():
        if isinstance(module, ResBlock):
            module.register_forward_hook(record(name))
    network(*inputs())
    assert sides == {
        f"{way}.{level}.blocks.{i}": 8 >> level for way in ("down", "up") for level, i in [(0, 0), (1, 0), (1, 1)]
    }


def test_the_usual_order_works_before_the_stride_and_after_the_upsampling():
    network = small(downsample_first=False, channels=[8, 16], strides=[2, 2])
    sides: dict[str, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, ResBlock):
            module.register_forward_hook(lambda _m, _i, out, name=name: sides.update({name: out.shape[-1]}))
    network(*inputs())
    assert sides == {
        f"{way}.{level}.blocks.{i}": 16 >> level for way in ("down", "up") for level, i in [(0, 0), (1, 0), (1, 1)]
    }
    assert [tuple(m[1].weight.shape[:2]) for m in network.downsample] == [(16, 8), (16, 16)]
    assert [tuple(m[1].weight.shape[:2]) for m in network.upsample] == [(8, 16), (16, 16)]


def test_the_order_of_resampling_hardly_changes_the_size():
    first, last = paper("efficient_unet"), paper("efficient_unet", downsample_first=False)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (first, last)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
    assert first.stride == last.stride


def test_a_fifth_level_is_one_override():
    """Another reading of figure A.30: a fifth level of 1024 channels without a stride, attention on the last two."""
    node: Any = OmegaConf.load(CONF / "network" / "efficient_unet_five_levels.yaml")
    network = paper("efficient_unet_five_levels")
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 773
    assert network.stride == 16
    assert len(network.down) == 5
    four: Any = OmegaConf.load(CONF / "network" / "efficient_unet.yaml")
    assert {key for key in node if node._get_node(key) != four._get_node(key)} == {
        "channels",
        "strides",
        "num_res_blocks",
        "self_attention",
        "cross_attention",
    }


def test_residual_sums_and_long_skips_are_scaled():
    assert all(
        m.skip_scale == 0.5**0.5 for m in small().modules() if isinstance(m, ResBlock | SelfAttention | CrossAttention)
    )
    one, half = small(long_skip_scale=1.0), small(long_skip_scale=0.5)
    x, skip = torch.ones(1, 8, 2, 2), torch.full((1, 8, 2, 2), 2.0)
    assert (one._joined(x, skip) == 3.0).all()
    assert (half._joined(x, skip) == 1.5).all()
    concat = small(long_skip_scale=0.5, long_skip_concat=True)._joined(x, skip)
    assert concat.shape == (1, 16, 2, 2)
    assert (concat == 1.0).all()


@pytest.mark.parametrize("changes", VARIANTS)
def test_padding_changes_nothing_and_empty_text_is_borne(changes: dict[str, Any]):
    network = small(**changes)
    want = network(*inputs())
    assert want.shape == (3, changes.get("out_channels", 3), 16, 16)
    assert want.isfinite().all()
    torch.testing.assert_close(network(*inputs(padded_to=9, padding=1e3)), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_network_starts_as_zero_and_every_weight_learns(changes: dict[str, Any]):
    x, logsnr, cond = inputs()
    assert not built(SMALL | changes)(x, logsnr, cond).any()
    network = small(**changes)
    network(x, logsnr, cond).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_text_noise_levels_and_low_res_tell():
    network = small()
    x, logsnr, cond = inputs()
    low_res, level = cond.low_res, cond.low_res_logsnr
    assert low_res is not None
    assert level is not None
    want = network(x, logsnr, cond)
    assert (network(x, logsnr, cond.null_text()) - want)[:2].abs().amax(dim=(1, 2, 3)).min() > 1e-3
    for pooling in (MeanPooling, NoPooling):
        other = small(text_pooling=pooling)
        assert (other(x, logsnr, cond.null_text()) - other(x, logsnr, cond))[:2].abs().amax(dim=(1, 2, 3)).min() > 1e-3
    for other in (
        network(x, logsnr + 1, cond),
        network(x, logsnr, Conditioning(cond.text, -low_res, level)),
        network(x, logsnr, Conditioning(cond.text, low_res, level + 3)),
    ):
        assert (other - want).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_an_example_does_not_see_its_neighbours():
    network = small()
    x, logsnr, cond = inputs()
    assert cond.low_res is not None
    assert cond.low_res_logsnr is not None
    text = TextEmbedding(cond.text.tokens[:1], cond.text.mask[:1])
    alone = network(x[:1], logsnr[:1], Conditioning(text, cond.low_res[:1], cond.low_res_logsnr[:1]))
    torch.testing.assert_close(alone, network(x, logsnr, cond)[:1], rtol=1e-4, atol=1e-5)


def test_any_multiple_of_the_stride_is_taken_and_others_name_sizes_that_work():
    network = small(patch_size=2)
    assert network.stride == 8
    x, logsnr, cond = inputs(side=24)
    assert network(x, logsnr, cond).shape == (3, 3, 24, 24)
    assert network(x[:, :, :16], logsnr, cond).shape == (3, 3, 16, 24)
    with pytest.raises(UserError, match=r"24x18 pixels.* multiples of 8: 24x16 or 24x24"):
        network(x[..., :18], logsnr, cond)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_bf16_autocast_is_near_float32(layout: torch.memory_format, patch_size: int):
    network = small(patch_size=patch_size)
    x, logsnr, cond = inputs()
    want = network(x, logsnr, cond)
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    with torch.autocast("cpu", torch.bfloat16):
        got = network(x.contiguous(memory_format=layout), logsnr, cond)
    assert got.dtype == torch.float32
    assert (got - want).square().mean() < 4e-3 * want.square().mean()
    got.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_res_blocks": [1]}, "num_res_blocks"),
        ({"cross_attention": [True]}, "cross_attention"),
        ({"strides": [2, 4]}, "strides"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"num_res_blocks": [0, 1], "long_skip_concat": True}, "long_skip_concat"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], named: str):
    with pytest.raises(UserError, match=named):
        built(SMALL | changes)


def test_norms_of_text_queries_and_keys_are_switched_everywhere():
    def kinds(**changes: Any) -> set[type]:
        return {type(m) for m in small(**changes).modules()} & {nn.LayerNorm, HeadNorm}

    assert kinds() == {nn.LayerNorm}
    assert kinds(text_norm=False) == set()
    assert kinds(text_norm=False, qk_norm=True) == {HeadNorm}


@pytest.mark.parametrize("override", ["text_norm=maybe", "qk_norm=2", "downsample_first=last", "self_attention=true"])
def test_a_mistyped_hyperparameter_names_itself(override: str):
    with pytest.raises(UserError, match=f"(?i)network.{override}"):
        compose("train", ["experiment=toy_sr32", f"network.{override}"])


def test_compiles_without_a_graph_break():
    program = f"""
    import torch
    from imagen.network.efficient_unet import EfficientUNet
    from imagen.null_text import LearnedText
    from imagen.text_pooling import MeanPooling
    from imagen.types import Conditioning, TextEmbedding
    torch.manual_seed(0)
    options = {SMALL | {"patch_size": 2, "num_res_blocks": [0, 1], "downsample_first": False}!r}
    network = EfficientUNet(LearnedText(text_width=12), MeanPooling, **options)
    torch.nn.init.normal_(network.conv_out.weight)
    text = TextEmbedding(torch.randn(2, 4, 12), torch.arange(4) < torch.tensor([[4], [2]]))
    cond = Conditioning(text.dropped(torch.tensor([False, True])), torch.randn(2, 3, 4, 4), torch.zeros(2))
    x, logsnr = torch.randn(2, 3, 16, 16), torch.zeros(2)
    want = network(x, logsnr, cond)
    got = torch.compile(network, fullgraph=True, backend="aot_eager")(x, logsnr, cond)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    got.sum().backward()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
