"""The base U-Net: size at the paper's scale, padding, layouts, precision and compilation."""

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

from imagen import build
from imagen.cli import CONF, compose
from imagen.errors import UserError
from imagen.network.attention import HeadNorm, NoTextKeys, SelfAttention, TextKeys
from imagen.network.unet import UNet
from imagen.null_text import ZeroedText
from imagen.randomness import TrainingAddress
from imagen.text_pooling import AttentionPooling, MeanPooling, NoPooling
from imagen.types import Conditioning, TextEmbedding

PAPER: dict[str, Any] = {
    "image_size": 64,
    "text_width": 4096,
    "text_norm": True,
    "width": 512,
    "emb_mult": 4,
    "channel_mult": [1, 2, 3, 4],
    "num_res_blocks": [3, 3, 3, 3],
    "attention_resolutions": [32, 16, 8],
    "text_resolutions": [32, 16, 8],
    "head_channels": 64,
    "qk_norm": False,
    "skip_scale": 1.0,
    "low_res": False,
    "out_channels": 3,
}
SMALL: dict[str, Any] = PAPER | {
    "image_size": 16,
    "text_width": 12,
    "width": 16,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 2],
    "attention_resolutions": [8],
    "text_resolutions": [8],
    "head_channels": 8,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"out_channels": 6, "qk_norm": True},
    {"text_pooling": MeanPooling, "text_norm": False},
    {"text_pooling": NoPooling},
    {"text_pooling": MeanPooling, "text_resolutions": []},
]


ATTENTION = partial(AttentionPooling, head_channels=64)


def built(values: dict[str, Any]) -> UNet:
    """The network of these hyperparameters and, where they name none, the paper's text pooling."""
    pooling = values.get("text_pooling", ATTENTION)
    return UNet(ZeroedText(), pooling, **{key: value for key, value in values.items() if key != "text_pooling"})


def small(**changes: Any) -> UNet:
    """A small network whose zero-initialised layers are given weights, so that every part tells in the output."""
    generator = torch.Generator().manual_seed(0)
    network = built(SMALL | changes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(padded_to: int = 5, padding: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(padded_to) < torch.tensor([[4], [2], [0]])
    tokens = torch.randn(3, 20, 12, generator=generator)[:, :padded_to].masked_fill(~mask[:, :, None], padding)
    x = torch.randn(3, 3, 16, 16, generator=generator)
    return x, torch.tensor([-9.0, 0.0, 9.0]), Conditioning(TextEmbedding(tokens, mask))


@pytest.mark.parametrize(
    ("width", "least", "most"), [(512, 2.0, 2.4), (320, 0.8, 1.25), (256, 0.48, 0.60), (192, 0.28, 0.42)]
)
def test_paper_sizes(width: int, least: float, most: float):
    with torch.device("meta"):
        built(PAPER | {"width": 64})  # torch loads its meta kernels once
        start = time.process_time()  # others may have the processor meanwhile
        network = built(PAPER | {"width": width})
    assert time.process_time() - start < 1.0
    assert least < sum(p.numel() for p in network.parameters()) / 1e9 < most


def test_attention_follows_every_block_of_its_levels():
    with torch.device("meta"):
        network = built(PAPER)
    heads = [m.num_heads for m in network.modules() if type(m).__name__ == "SelfAttention"]
    assert sorted(heads) == [16] * 7 + [24] * 7 + [32] * 8


def test_text_resolutions_say_where_attention_reads_the_text():
    layers = [m for m in small(text_resolutions=[]).modules() if isinstance(m, SelfAttention)]
    assert layers
    assert all(isinstance(m.text, NoTextKeys) for m in layers)
    assert all(isinstance(m.text, TextKeys) for m in small().modules() if isinstance(m, SelfAttention))


@pytest.mark.parametrize("changes", VARIANTS)
def test_padding_changes_nothing_and_empty_text_is_borne(changes: dict[str, Any]):
    network = small(**changes)
    want = network(*inputs())
    assert want.shape == (3, changes.get("out_channels", 3), 16, 16)
    assert want.isfinite().all()
    torch.testing.assert_close(network(*inputs(padded_to=9, padding=1e3)), want, rtol=1e-4, atol=1e-5)


def test_text_noise_level_and_low_res_tell():
    network = small(low_res=True)
    x, logsnr, cond = inputs()
    low_res = torch.randn(3, 3, 8, 8)

    def out(cond: Conditioning, logsnr: torch.Tensor = logsnr, low_res: torch.Tensor = low_res, level: float = 0.0):
        return network(x, logsnr, Conditioning(cond.text, low_res, torch.full((3,), level)))

    want = out(cond)
    assert (out(cond.null_text()) - want)[:2].abs().amax(dim=(1, 2, 3)).min() > 1e-3
    for changes in VARIANTS:
        other = small(**changes)
        told, untold = (other(x, logsnr, c) for c in (cond, cond.null_text()))
        assert (told - untold)[:2].abs().amax(dim=(1, 2, 3)).min() > 1e-3
    for other in (out(cond, logsnr=logsnr + 1), out(cond, low_res=-low_res), out(cond, level=3.0)):
        assert (other - want).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_network_starts_as_zero_and_every_weight_learns(changes: dict[str, Any]):
    x, logsnr, cond = inputs()
    assert not built(SMALL | changes)(x, logsnr, cond).any()
    network = small(**changes)
    network(x, logsnr, cond).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_an_example_does_not_see_its_neighbours():
    network = small()
    x, logsnr, cond = inputs()
    alone = Conditioning(TextEmbedding(cond.text.tokens[:1], cond.text.mask[:1]))
    torch.testing.assert_close(network(x[:1], logsnr[:1], alone), network(x, logsnr, cond)[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bf16_autocast_is_near_float32(layout: torch.memory_format):
    network = small()
    x, logsnr, cond = inputs()
    want = network(x, logsnr, cond)
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    with torch.autocast("cpu", torch.bfloat16):
        got = network(x.contiguous(memory_format=layout), logsnr, cond)
    assert got.dtype == torch.float32
    assert (got - want).square().mean() < 1e-3 * want.square().mean()
    got.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_any_multiple_of_the_stride_is_taken_and_others_name_sizes_that_work():
    network = small()
    assert network.stride == 2
    x, logsnr, cond = inputs()
    assert network(x[:, :, :12, :10], logsnr, cond).shape == (3, 3, 12, 10)
    with pytest.raises(UserError, match=r"12x9 pixels.* multiples of 2: 12x8 or 12x10"):
        network(x[:, :, :12, :9], logsnr, cond)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_res_blocks": [1]}, "num_res_blocks"),
        ({"image_size": 17}, "resolution=17"),
        ({"head_channels": 24}, "head_channels=24"),
        ({"text_resolutions": [4]}, r"text_resolutions=\[4\]"),
        (
            {"attention_resolutions": [8, 4], "text_resolutions": [4]},
            r"resolution=16 .* 4 is the side of no level; there are 16, 8 pixels",
        ),
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


def test_compiles_without_a_graph_break():
    program = f"""
    from functools import partial
    import torch
    from imagen.network.unet import UNet
    from imagen.null_text import EmptyCaption
    from imagen.text_pooling import AttentionPooling
    from imagen.types import Conditioning, TextEmbedding
    torch.manual_seed(0)
    null_text = EmptyCaption(text_width=12, max_length=8)
    null_text.fill(lambda captions: TextEmbedding(torch.randn(1, 2, 12), torch.ones(1, 2, dtype=torch.bool)))
    pooling = partial(AttentionPooling, head_channels=8)
    network = UNet(null_text, pooling, **{SMALL | {"num_res_blocks": [0, 1], "qk_norm": True}!r})
    torch.nn.init.normal_(network.conv_out.weight)
    text = TextEmbedding(torch.randn(2, 4, 12), torch.arange(4) < torch.tensor([[4], [2]]))
    cond = Conditioning(text.dropped(torch.tensor([False, True])))
    x, logsnr = torch.randn(2, 3, 16, 16), torch.zeros(2)
    want = network(x, logsnr, cond)
    got = torch.compile(network, fullgraph=True, backend="eager")(x, logsnr, cond)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    got.sum().backward()
    replaced = torch.compile(null_text, fullgraph=True, backend="eager", dynamic=True)
    for length in (4, 6, 8, 9):  # of the batch's longest prompt
        torch.testing.assert_close(replaced(text.padded(length)).mask, null_text(text.padded(length)).mask)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_there_is_no_randomness_inside():
    assert not [m for m in small().modules() if isinstance(m, nn.Dropout)]


def test_a_narrow_super_resolution_unet_learns():
    overrides = ["experiment=toy_sr32", "network=unet_sr_toy", "parameterization=v", "weighting.sigma_data=1.0"]
    cfg = compose("train", overrides)
    module, data = build.build_module(cfg), build.build_data(cfg)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    optimizer = torch.optim.Adam(module.denoiser.parameters(), lr=4e-3)
    losses = []
    address = TrainingAddress(0, 0, 0, len(batch), len(batch), torch.device("cpu"))
    for _ in range(20):
        loss = module.loss(module.denoiser, batch, address, training=True).per_example.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_super_resolution_unet_is_near_the_papers_600m():
    node: Any = OmegaConf.load(CONF / "network" / "unet_sr.yaml")
    del node["_target_"]
    node.merge_with({"image_size": 256, "text_width": 4096})
    values: Any = OmegaConf.to_container(node, resolve=True)
    with torch.device("meta"):
        network = built(values)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 640
    assert network.low_res
    assert network.stride == 32
