"""Residual blocks and their norm: shapes, what starts as the identity, and sizes that a network takes."""

import pytest
import torch
from torch import nn

from imagen.errors import UserError
from imagen.network.blocks import Downsample, GroupNorm, ResBlock, Upsample, check_size


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


def test_sizes_that_work_are_named():
    check_size(24, 16, 8)
    with pytest.raises(UserError, match=r"24x18 pixels.* multiples of 8: 24x16 or 24x24"):
        check_size(24, 18, 8)
    with pytest.raises(UserError, match="8x8 or 8x8"):
        check_size(3, 3, 8)
