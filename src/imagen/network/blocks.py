"""Parts that every network is made of: norm, resampling, residual block, and the sizes that a network takes.

Axis letters beside those of ``imagen.types``: ``e`` embedding width, ``k`` attention heads, ``s`` positions (h*w).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.network.kernels import conv3x3, group_norm

NORM_GROUPS = 32
"""Groups of every GroupNorm, as in ADM; fewer where a group would have less than ``MIN_GROUP_CHANNELS``."""

MIN_GROUP_CHANNELS = 4
"""ADM's narrowest group (128 channels in 32). A channel normalised by itself forgets how bright the picture is."""


def zero_init(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer with weight and bias set to zero, so that what it ends starts as nothing."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def unit_init(layer: nn.Linear) -> nn.Linear:
    """The layer with weights that keep the input's variance, and no bias.

    PyTorch's own start divides the variance by three at each layer: noise level and text, which pass several on their
    way to the blocks, would arrive too weak to be learned from quickly.
    """
    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(in_width: int, out_width: int) -> nn.Sequential:
    """Two linear layers with a SiLU between."""
    return nn.Sequential(
        unit_init(nn.Linear(in_width, out_width)), nn.SiLU(), unit_init(nn.Linear(out_width, out_width))
    )


class GroupNorm(nn.Module):
    """GroupNorm of at most 32 groups, with an optional scale and shift of each example's channels, and SiLU if asked.

    With ``scale_shift`` (``[b, 2c]``: scale, then shift) it is ADM's: ``norm(x) * (1 + scale) + shift``.
    ``kernel`` computes it; another of the same meaning may take its place (``imagen.group_norm``).
    """

    def __init__(self, channels: int, *, silu: bool = False):
        super().__init__()
        self.silu = silu
        self.kernel = group_norm
        self.num_groups = math.gcd(max(1, channels // MIN_GROUP_CHANNELS), NORM_GROUPS)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, x: Float[Tensor, "b c h w"], scale_shift: Float[Tensor, "b c2"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        gain, bias = self.weight.expand(len(x), -1), self.bias.expand(len(x), -1)
        if scale_shift is not None:
            scale, shift = scale_shift.float().chunk(2, dim=1)
            gain, bias = gain * (1 + scale), bias * (1 + scale) + shift
        return self.kernel(x, self.num_groups, gain, bias, self.silu)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the size."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h w"]:
        assert self.bias is not None
        return conv3x3(input, self.weight, self.bias)


class Upsample(nn.Module):
    """Twice the side, nearest neighbour."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Downsample(nn.Module):
    """Half the side, 2x2 average."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return F.avg_pool2d(x, 2)


class ResBlock(nn.Module):
    """Residual block with scale-shift norm (ADM, arXiv 2105.05233 section 3): the paper's "biggan" block (F.1).

    ``resample`` (``Upsample()``, ``Downsample()`` or ``nn.Identity()``) acts in the block, on branch and skip alike.
    ``skip_scale`` multiplies the sum of both: 1 in ADM, 1/sqrt(2) in the paper's Efficient U-Net (appendix B.1).
    """

    def __init__(self, in_channels: int, out_channels: int, emb_width: int, resample: nn.Module, skip_scale: float):
        super().__init__()
        self.skip_scale = skip_scale
        self.resample = resample
        self.norm1 = GroupNorm(in_channels, silu=True)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.scale_shift = unit_init(nn.Linear(emb_width, 2 * out_channels))
        self.norm2 = GroupNorm(out_channels, silu=True)
        self.conv2 = zero_init(Conv3x3(out_channels, out_channels))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b c_out h_out w_out"]:
        """``emb`` is the embedding after its last SiLU, as ``ConditioningEmbedding`` gives it."""
        h = self.conv1(self.resample(self.norm1(x)))
        h = self.conv2(self.norm2(h, self.scale_shift(emb)))
        x = self.skip(self.resample(x)) + h
        return x if self.skip_scale == 1.0 else x * self.skip_scale


def check_size(height: int, width: int, stride: int) -> None:
    """Raises: UserError, naming sizes that work, unless both sides are multiples of the network's ``stride``."""
    if height % stride or width % stride:
        below = [max(stride, side - side % stride) for side in (height, width)]
        above = [side + -side % stride for side in (height, width)]
        raise UserError(
            f"x_t is {height}x{width} pixels, but this network takes sides that are multiples of {stride}: "
            f"{below[0]}x{below[1]} or {above[0]}x{above[1]} would do"
        )
