"""The norm as one operation of torch, forward and backward: what torch.compile, autograd and checkpoints know of it."""

from typing import Any

import torch
from torch import Tensor
from triton import knobs

from imagen.network.kernels import EPSILON, group_norm
from imagen.network.triton_norm import kernels

TILE = 8192
"""Numbers that a program holds at once: 32 for each thread of eight warps, twice that in the backward pass."""

TILE_CHANNELS = 64
"""Channels of a tile where they lie beside each other: whole cache lines of 128 bytes in bf16."""

TILE_PIXELS = 2048
"""Pixels of a tile where those do."""

KERNELS: Any = kernels
"""They are launched, not called, and compiled from numbers that their signatures have as another type."""

INTERPRETED = knobs.runtime.interpret
"""Kernels run as Python, on any device, for tests: TRITON_INTERPRET=1."""


def triton_group_norm(x: Tensor, groups: int, gain: Tensor, bias: Tensor, silu: bool) -> Tensor:
    """As ``kernels.group_norm``, in these kernels where ``x`` lies on a GPU."""
    if not (x.is_cuda or INTERPRETED):
        return group_norm(x, groups, gain, bias, silu)
    return _group_norm(x, groups, gain.float(), bias.float(), silu)[0]


@torch.library.custom_op("imagen::group_norm", mutates_args=())
def _group_norm(x: Tensor, groups: int, gain: Tensor, bias: Tensor, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and each group's mean and reciprocal deviation, ``[b, groups]``."""
    x, gain, bias = _dense(x, like=x), gain.contiguous(), bias.contiguous()
    shape, tiles, sums = _plan(x, groups)
    out, mean, rstd = _empty(x, groups)
    means, squares = _partial(x, tiles), _partial(x, tiles)
    with torch.cuda.device_of(x):
        KERNELS.group_norm_moments[tiles](x, means, squares, **shape)
        KERNELS.group_norm_statistics[groups, len(x)](means, squares, mean, rstd, tiles[0], EPSILON, **sums)
        KERNELS.group_norm_apply[tiles](x, mean, rstd, gain, bias, out, groups, silu, **shape)
    return out, mean, rstd


@torch.library.custom_op("imagen::group_norm_backward", mutates_args=())
def _group_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, groups: int, gain: Tensor, bias: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, gain and bias."""
    grad, x, gain, bias = _dense(grad, like=x), _dense(x, like=x), gain.contiguous(), bias.contiguous()
    shape, tiles, sums = _plan(x, groups)
    x_grad, along_one, along_x = _empty(x, groups)
    gain_grad, bias_grad = torch.empty_like(gain), torch.empty_like(bias)
    gain_sums, bias_sums = _partial(x, tiles), _partial(x, tiles)
    given = (grad, x, mean, rstd, gain, bias)
    with torch.cuda.device_of(x):
        KERNELS.group_norm_products[tiles](*given, gain_sums, bias_sums, groups, silu, **shape)
        KERNELS.group_norm_sums[groups, len(x)](
            *(gain_sums, bias_sums, gain, gain_grad, bias_grad, along_one, along_x, tiles[0]), **sums
        )
        KERNELS.group_norm_apply_backward[tiles](*given, along_one, along_x, x_grad, groups, silu, **shape)
    return x_grad, gain_grad, bias_grad


@_group_norm.register_fake
def _(x: Tensor, groups: int, gain: Tensor, bias: Tensor, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(_dense(x, like=x), groups)


@_group_norm_backward.register_fake
def _(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, groups: int, gain: Tensor, bias: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    gain, bias = gain.contiguous(), bias.contiguous()
    return torch.empty_like(_dense(x, like=x)), torch.empty_like(gain), torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, ctx.groups, gain, bias, ctx.silu = inputs
    ctx.save_for_backward(x, output[1], output[2], gain, bias)
    ctx.mark_non_differentiable(output[1], output[2])


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None, Tensor, Tensor, None]:
    x, mean, rstd, gain, bias = ctx.saved_tensors
    x_grad, gain_grad, bias_grad = _group_norm_backward(grad, x, mean, rstd, ctx.groups, gain, bias, ctx.silu)
    return x_grad, None, gain_grad, bias_grad, None


_group_norm.register_autograd(_differentiate, setup_context=_keep)


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _dense(x: Tensor, like: Tensor) -> Tensor:
    """``x`` as ``like`` lies in memory, channels last or first, without gaps."""
    return x.contiguous(memory_format=torch.channels_last if _channels_last(like) else torch.contiguous_format)


def _empty(x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for one like ``x``, and two numbers a group."""
    a_group = x.new_empty(len(x), groups, dtype=torch.float32)
    return torch.empty_like(x), a_group, torch.empty_like(a_group)


def _partial(x: Tensor, tiles: tuple[int, int, int]) -> Tensor:
    """Room for a number of each channel of each tile."""
    return x.new_empty(len(x), tiles[0], x.shape[1], dtype=torch.float32)


def _plan(x: Tensor, groups: int) -> tuple[dict[str, int], tuple[int, int, int], dict[str, int]]:
    """The shape of picture and tile; their grid over pixels, channels, examples; the shape of sums over them."""
    channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
    all_channels, all_pixels = _power_of_two(channels), _power_of_two(pixels)
    if _channels_last(x):
        tile_channels = min(TILE_CHANNELS, all_channels)
        tile_pixels = min(TILE // tile_channels, all_pixels)
    else:
        tile_pixels = min(TILE_PIXELS, all_pixels)
        tile_channels = min(TILE // tile_pixels, all_channels)
    strides = (1, channels) if _channels_last(x) else (pixels, 1)
    common = {"channels": channels, "pixels": pixels, "TILE_S": tile_pixels}
    tiles = (-(-pixels // tile_pixels), -(-channels // tile_channels), len(x))
    shape = {"stride_c": strides[0], "stride_s": strides[1], "TILE_C": tile_channels, "num_warps": 8}
    width = channels // groups
    sums = {"WIDTH": width, "SUM_C": _power_of_two(width)}
    sums["SUM_T"] = min(_power_of_two(tiles[0]), max(1, TILE // 2 // sums["SUM_C"]))
    return common | shape, tiles, common | sums


def _power_of_two(number: int) -> int:
    """The least that is not below ``number``: the only sizes that tiles may have."""
    return 1 << (number - 1).bit_length()
