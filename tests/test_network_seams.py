"""The 256 to 1024 network on a crop and on the whole: what must agree, so that training on crops serves whole pictures.

Convolutions and attention to the text know no position, so the network commutes with shifts by its stride. Two things
tell a crop from the whole: the zeros that convolutions see beyond its border, as far as their reach goes, and the
GroupNorms, whose statistics are over all pixels. The first is exact away from the border; the second is small where a
crop looks like the rest of its picture. The paper's own depth reaches some 880 pixels, further than its crops of 256.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from small_text import randomize
from torch import Tensor, nn

from imagen.cli import CONF
from imagen.network.blocks import GroupNorm
from imagen.network.efficient_unet import EfficientUNet
from imagen.null_text import ZeroedText
from imagen.text_pooling import MeanPooling
from imagen.types import Conditioning, TextEmbedding

SIDE, CROP, SCALE = 320, 224, 4
NARROW = {"channels": [16, 32, 32], "strides": [2, 2, 2], "num_res_blocks": [1, 1, 1], "num_heads": 2, "emb_width": 16}
NARROW |= {"self_attention": [False] * 3, "cross_attention": [False, False, True], "text_width": 8}
REACH = 88
"""Pixels from a border beyond which the narrow network does not see it."""


@pytest.fixture(scope="module")
def network() -> nn.Module:
    node: Any = OmegaConf.load(CONF / "network" / "efficient_unet_sr1024.yaml")
    del node["_target_"]
    node.merge_with(NARROW)
    values: Any = OmegaConf.to_container(node)
    return randomize(EfficientUNet(ZeroedText(), MeanPooling, **values), std=0.1).eval()


@pytest.fixture
def fixed_statistics(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms with mean 0 and deviation 1, whatever they see."""

    def affine(x: Tensor, groups: int, gain: Tensor, bias: Tensor, silu: bool) -> Tensor:
        y = x * gain[:, :, None, None] + bias[:, :, None, None]
        return F.silu(y) if silu else y

    for module in network.modules():
        if isinstance(module, GroupNorm):
            monkeypatch.setattr(module, "kernel", affine)


def pictures(side: int) -> tuple[Tensor, Tensor]:
    """x_t and its low-resolution twin: texture alike everywhere."""
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(1, 3, side, side, generator=generator)
    return x_t, F.avg_pool2d(torch.randn(1, 3, side, side, generator=generator), SCALE) * SCALE


def run(network: nn.Module, x_t: Tensor, low_res: Tensor) -> Tensor:
    tokens = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))
    cond = Conditioning(TextEmbedding(tokens, torch.ones(1, 4, dtype=torch.bool)), low_res, torch.tensor([2.0]))
    with torch.inference_mode():
        return network(x_t, torch.tensor([0.5]), cond)


def cropped(picture: Tensor, scale: int, start: int = 48) -> Tensor:
    rows = slice(start // scale, (start + CROP) // scale)
    return picture[..., rows, rows]


def interior(picture: Tensor) -> Tensor:
    return picture[..., REACH:-REACH, REACH:-REACH]


def test_a_crop_is_the_whole_beyond_the_reach_of_its_border(network, fixed_statistics):
    x_t, low_res = pictures(SIDE)
    whole = run(network, x_t, low_res)
    crop = run(network, cropped(x_t, 1), cropped(low_res, SCALE))
    assert interior(crop).std() > 1e-2
    torch.testing.assert_close(interior(crop), interior(cropped(whole, 1)), rtol=1e-4, atol=1e-5)
    edge = (crop - cropped(whole, 1))[..., :8, :].abs().max()
    assert edge > 1e-3  # at its border it sees zeros where the whole goes on


def test_it_commutes_with_shifts_by_its_stride_and_with_no_less(network, fixed_statistics):
    x_t, low_res = pictures(SIDE)
    still = interior(run(network, x_t, low_res))

    def shifted_back(pixels: int) -> Tensor:
        moved = run(network, x_t.roll(pixels, -1), low_res.roll(pixels // SCALE, -1))
        return interior(moved.roll(-pixels, -1))[..., : -2 * pixels]

    assert network.stride == 8
    torch.testing.assert_close(shifted_back(8), still[..., :-16], rtol=1e-4, atol=1e-5)
    assert (shifted_back(4) - still[..., :-8]).abs().max() > 1e-3


def test_the_norms_statistics_tell_a_crop_from_the_whole_but_little(network):
    x_t, low_res = pictures(SIDE)
    whole = cropped(run(network, x_t, low_res), 1)
    crop = run(network, cropped(x_t, 1), cropped(low_res, SCALE))
    difference = interior(crop - whole)
    assert 0 < difference.square().mean().sqrt() < 0.1 * interior(whole).std()
