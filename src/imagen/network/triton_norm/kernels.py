"""The kernels: what each program of a grid does with its tile ``[pixels, channels]``, or with its group."""

# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def _place(channels, pixels, stride_c, stride_s, TILE_S: tl.constexpr, TILE_C: tl.constexpr):
    """Of this program's tile: offsets of its numbers, which of them exist, its channels, where its sums go."""
    tile, block, example = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pixel, channel = tl.arange(0, TILE_S), tl.arange(0, TILE_C)
    # its corner in 64 bits: a batch of large pictures has more than 2^31 numbers
    corner = example.to(tl.int64) * channels * pixels
    corner += tile.to(tl.int64) * TILE_S * stride_s + block.to(tl.int64) * TILE_C * stride_c
    inside = (tile * TILE_S + pixel < pixels)[:, None] & (block * TILE_C + channel < channels)[None, :]
    offsets = corner + (pixel[:, None] * stride_s + channel[None, :] * stride_c)
    channel += block * TILE_C
    return offsets, inside, channel, (example * tl.num_programs(0) + tile) * channels + channel


@triton.jit
def _normalized(x, mean, rstd, gain, bias, offsets, inside, channel, channels, groups):
    """The tile less its mean over its deviation; the latter, gain and bias of each channel; the groups' places."""
    example = tl.program_id(2)
    exists = channel < channels
    group = example * groups + channel // (channels // groups)
    m, r = tl.load(mean + group, mask=exists, other=0.0), tl.load(rstd + group, mask=exists, other=0.0)
    g = tl.load(gain + example * channels + channel, mask=exists, other=0.0)
    b = tl.load(bias + example * channels + channel, mask=exists, other=0.0)
    tile = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    return (tile - m[None, :]) * r[None, :], r, g, b, group


@triton.jit
def _before_silu(grad, normalized, g, b, offsets, inside, SILU: tl.constexpr):
    """The tile's gradient before the activation."""
    upstream = tl.load(grad + offsets, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        y = normalized * g[None, :] + b[None, :]
        s = tl.sigmoid(y)
        upstream *= s * (1 + y * (1 - s))
    return upstream


@triton.jit
def group_norm_moments(
    x, means, squares, channels, pixels, stride_c, stride_s, TILE_S: tl.constexpr, TILE_C: tl.constexpr
):
    """Each channel's mean over the tile, and the sum of squares about it, which a large mean does not blur."""
    offsets, inside, channel, place = _place(channels, pixels, stride_c, stride_s, TILE_S, TILE_C)
    tile = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(tile, 0) / tl.minimum(pixels - tl.program_id(0) * TILE_S, TILE_S)
    about = tl.where(inside, tile - mean[None, :], 0.0)
    tl.store(means + place, mean, mask=channel < channels)
    tl.store(squares + place, tl.sum(about * about, 0), mask=channel < channels)


@triton.jit
def group_norm_statistics(
    means,
    squares,
    mean,
    rstd,
    tiles,
    epsilon,
    channels,
    pixels,
    TILE_S: tl.constexpr,
    WIDTH: tl.constexpr,
    SUM_C: tl.constexpr,
    SUM_T: tl.constexpr,
):
    """A group's mean and reciprocal deviation, from those of its tiles' channels (Chan et al. 1979)."""
    group, example = tl.program_id(0), tl.program_id(1)
    member = tl.arange(0, SUM_C)
    total = 0.0
    for first in range(0, tiles, SUM_T):
        tile = first + tl.arange(0, SUM_T)
        exists = (tile < tiles)[:, None] & (member < WIDTH)[None, :]
        place = (example * tiles + tile)[:, None] * channels + (group * WIDTH + member)[None, :]
        count = tl.minimum(pixels - tile * TILE_S, TILE_S).to(tl.float32)[:, None]
        total += tl.sum(count * tl.load(means + place, mask=exists, other=0.0))
    middle = total / (pixels * WIDTH)
    square = 0.0
    for first in range(0, tiles, SUM_T):
        tile = first + tl.arange(0, SUM_T)
        exists = (tile < tiles)[:, None] & (member < WIDTH)[None, :]
        place = (example * tiles + tile)[:, None] * channels + (group * WIDTH + member)[None, :]
        count = tl.minimum(pixels - tile * TILE_S, TILE_S).to(tl.float32)[:, None]
        away = tl.load(means + place, mask=exists, other=0.0) - middle
        square += tl.sum(tl.where(exists, count * away * away, 0.0))
        square += tl.sum(tl.load(squares + place, mask=exists, other=0.0))
    tl.store(mean + example * tl.num_programs(0) + group, middle)
    tl.store(rstd + example * tl.num_programs(0) + group, 1 / tl.sqrt(square / (pixels * WIDTH) + epsilon))


@triton.jit
def group_norm_apply(
    x,
    mean,
    rstd,
    gain,
    bias,
    out,
    groups,
    SILU: tl.constexpr,
    channels,
    pixels,
    stride_c,
    stride_s,
    TILE_S: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """The tile's output."""
    offsets, inside, channel, _ = _place(channels, pixels, stride_c, stride_s, TILE_S, TILE_C)
    normalized, _, g, b, _ = _normalized(x, mean, rstd, gain, bias, offsets, inside, channel, channels, groups)
    y = normalized * g[None, :] + b[None, :]
    if SILU:
        y *= tl.sigmoid(y)
    tl.store(out + offsets, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def group_norm_products(
    grad,
    x,
    mean,
    rstd,
    gain,
    bias,
    gain_sums,
    bias_sums,
    groups,
    SILU: tl.constexpr,
    channels,
    pixels,
    stride_c,
    stride_s,
    TILE_S: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """The tile's share of the gradients of gain and bias."""
    offsets, inside, channel, place = _place(channels, pixels, stride_c, stride_s, TILE_S, TILE_C)
    normalized, _, g, b, _ = _normalized(x, mean, rstd, gain, bias, offsets, inside, channel, channels, groups)
    upstream = _before_silu(grad, normalized, g, b, offsets, inside, SILU)
    tl.store(gain_sums + place, tl.sum(upstream * normalized, 0), mask=channel < channels)
    tl.store(bias_sums + place, tl.sum(upstream, 0), mask=channel < channels)


@triton.jit
def group_norm_sums(
    gain_sums,
    bias_sums,
    gain,
    gain_grad,
    bias_grad,
    along_one,
    along_x,
    tiles,
    channels,
    pixels,
    TILE_S: tl.constexpr,
    WIDTH: tl.constexpr,
    SUM_C: tl.constexpr,
    SUM_T: tl.constexpr,
):
    """A group's gradients of gain and bias, and what mean and deviation take off the input's."""
    group, example = tl.program_id(0), tl.program_id(1)
    member = tl.arange(0, SUM_C)
    for_gain = tl.zeros([SUM_C], tl.float32)
    for_bias = tl.zeros([SUM_C], tl.float32)
    for first in range(0, tiles, SUM_T):
        tile = first + tl.arange(0, SUM_T)
        exists = (tile < tiles)[:, None] & (member < WIDTH)[None, :]
        place = (example * tiles + tile)[:, None] * channels + (group * WIDTH + member)[None, :]
        for_gain += tl.sum(tl.load(gain_sums + place, mask=exists, other=0.0), 0)
        for_bias += tl.sum(tl.load(bias_sums + place, mask=exists, other=0.0), 0)
    place = example * channels + group * WIDTH + member
    g = tl.load(gain + place, mask=member < WIDTH, other=0.0)
    tl.store(gain_grad + place, for_gain, mask=member < WIDTH)
    tl.store(bias_grad + place, for_bias, mask=member < WIDTH)
    tl.store(along_one + example * tl.num_programs(0) + group, tl.sum(g * for_bias) / (pixels * WIDTH))
    tl.store(along_x + example * tl.num_programs(0) + group, tl.sum(g * for_gain) / (pixels * WIDTH))


@triton.jit
def group_norm_apply_backward(
    grad,
    x,
    mean,
    rstd,
    gain,
    bias,
    along_one,
    along_x,
    x_grad,
    groups,
    SILU: tl.constexpr,
    channels,
    pixels,
    stride_c,
    stride_s,
    TILE_S: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """The tile's gradient: what its own output says, less what moved with the group's mean and deviation."""
    offsets, inside, channel, _ = _place(channels, pixels, stride_c, stride_s, TILE_S, TILE_C)
    normalized, r, g, b, group = _normalized(x, mean, rstd, gain, bias, offsets, inside, channel, channels, groups)
    upstream = _before_silu(grad, normalized, g, b, offsets, inside, SILU)
    one = tl.load(along_one + group, mask=channel < channels, other=0.0)[None, :]
    along = tl.load(along_x + group, mask=channel < channels, other=0.0)[None, :]
    tl.store(x_grad + offsets, r[None, :] * (g[None, :] * upstream - one - normalized * along), mask=inside)
