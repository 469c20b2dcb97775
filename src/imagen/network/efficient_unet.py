"""The paper's Efficient U-Net: few parameters and little work at high resolution, most of both at low resolution."""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.network.attention import CrossAttention, SelfAttention
from imagen.network.blocks import GroupNorm, ResBlock, Upsample, check_size, zero_init
from imagen.network.conditioning import ConditioningEmbedding, with_low_res
from imagen.null_text import NullText
from imagen.text_pooling import MakeTextPooling
from imagen.types import Conditioning, TextEmbedding

MakeAttention = Callable[[int], nn.Module]
"""An attention layer for so many channels."""


class Body(nn.Module):
    """What a down and an up block share: residual blocks, each told the combined embedding, then attention."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_res_blocks: int,
        emb_width: int,
        skip_scale: float,
        attentions: Iterable[MakeAttention],
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            ResBlock(channels if i else in_channels, channels, emb_width, nn.Identity(), skip_scale)
            for i in range(num_res_blocks)
        )
        self.attentions = nn.ModuleList(attention(channels) for attention in attentions)

    def forward(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"], text: TextEmbedding
    ) -> Float[Tensor, "b c_out h w"]:
        for block in self.blocks:
            x = block(x, emb)
        for attention in self.attentions:
            x = attention(x, text)
        return x


class EfficientUNet(nn.Module):
    """The paper's super-resolution network (appendix B.1, figures A.27-A.30): ``(x_t, logsnr, cond) -> [b out h w]``.

    One entry of each list per level, the highest resolution first; ``self_attention`` reads picture and text together,
    ``cross_attention`` the text alone. With ``downsample_first`` a down block strides first, then does its work, and an
    up block works first and upsamples last: with ``strides`` of 2 no block runs at full resolution. Without, it is the
    usual reverse. ``skip_scale`` multiplies every residual sum, as in the works the paper cites for it (1/sqrt(2));
    ``skip_scale=1`` with ``long_skip_scale=1/sqrt(2)`` is the other reading. Long skips, one a level, are added as the
    figure draws them, or concatenated. ``patch_size`` above 1 folds squares of pixels into channels at the door and
    unfolds them at the end, and ``input_skip`` shows the last convolution the network's input beside its features, so
    that colours need not be learned through the norms (neither is in the paper: they are for small networks and few
    steps). Sides must be multiples of ``stride``. ``out_channels`` is 3, or 6 to learn a variance too. The output is
    float32, first zero.
    """

    def __init__(
        self,
        null_text: NullText,
        make_text_pooling: MakeTextPooling,
        *,
        text_width: int,
        text_norm: bool,
        low_res: bool,
        out_channels: int,
        patch_size: int,
        channels: list[int],
        strides: list[int],
        downsample_first: bool,
        num_res_blocks: list[int],
        self_attention: list[bool],
        cross_attention: list[bool],
        num_heads: int,
        qk_norm: bool,
        emb_width: int,
        skip_scale: float,
        long_skip_scale: float,
        long_skip_concat: bool,
        input_skip: bool,
    ):
        super().__init__()
        _check(channels, strides, num_res_blocks, self_attention, cross_attention, num_heads, patch_size)
        # striding first, the deepest level goes straight into its up block; striding last, there is a stride between
        self.num_skips = len(channels) - downsample_first
        if long_skip_concat and 0 in num_res_blocks[: self.num_skips]:
            raise UserError(
                f"network.num_res_blocks={num_res_blocks} must be 1 or more where network.long_skip_concat=true has a "
                "skip to take in: add a block or set long_skip_concat=false"
            )
        self.low_res = low_res
        self.patch_size = patch_size
        self.stride = patch_size * math.prod(strides)
        self.downsample_first = downsample_first
        self.long_skip_scale = long_skip_scale
        self.long_skip_concat = long_skip_concat

        self.embedding = ConditioningEmbedding(
            null_text,
            make_text_pooling,
            channels[0],
            emb_width,
            text_width,
            low_res=low_res,
            text_norm=text_norm,
            attends=any(self_attention) or any(cross_attention),
        )
        self.conv_in = nn.Conv2d((6 if low_res else 3) * patch_size**2, channels[0], 3, padding=1)
        options = {"num_heads": num_heads, "text_width": emb_width, "skip_scale": skip_scale}
        options |= {"text_norm": text_norm, "qk_norm": qk_norm}
        kinds = [partial(SelfAttention, **options)], [partial(CrossAttention, **options)]
        neighbours = channels[:1] + channels[:-1] if downsample_first else channels[1:] + channels[-1:]
        self.downsample, self.down = nn.ModuleList(), nn.ModuleList()
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for level, (width, neighbour, stride) in enumerate(zip(channels, neighbours, strides, strict=True)):
            attentions = kinds[0] * self_attention[level] + kinds[1] * cross_attention[level]
            common = (width, num_res_blocks[level], emb_width, skip_scale, attentions)
            above, below = (neighbour, width) if downsample_first else (width, neighbour)
            doubled = long_skip_concat and level < self.num_skips
            grow = Upsample() if stride == 2 else nn.Identity()
            self.downsample.append(_resize(above, below, stride, first=nn.Identity(), conv_stride=stride))
            self.down.append(Body(width, *common))
            self.up.append(Body(2 * width if doubled else width, *common))
            self.upsample.append(_resize(below, above, stride, first=grow, conv_stride=1))

        self.norm_out = GroupNorm(channels[0], silu=True)
        self.input_skip = input_skip
        seen = self.conv_in.in_channels if input_skip else 0
        self.conv_out = zero_init(nn.Conv2d(channels[0] + seen, out_channels * patch_size**2, 3, padding=1))

    def forward(
        self, x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b out h w"]:
        check_size(x_t.shape[2], x_t.shape[3], self.stride)
        emb, text = self.embedding(logsnr, cond)
        x = with_low_res(x_t, cond.low_res) if self.low_res else x_t
        seen = F.pixel_unshuffle(x, self.patch_size)
        x = self.conv_in(seen)
        skips = []
        for downsample, body in zip(self.downsample, self.down, strict=True):
            x = body(downsample(x) if self.downsample_first else x, emb, text)
            skips.append(x)
            x = x if self.downsample_first else downsample(x)
        del skips[self.num_skips :]
        for level in reversed(range(len(self.up))):
            x = x if self.downsample_first else self.upsample[level](x)
            if level < self.num_skips:
                x = self._joined(x, skips.pop())
            x = self.up[level](x, emb, text)
            x = self.upsample[level](x) if self.downsample_first else x
        x = self.norm_out(x)
        x = self.conv_out(torch.cat([x, seen.to(x.dtype)], dim=1) if self.input_skip else x)
        return F.pixel_shuffle(x, self.patch_size).float()

    def _joined(self, x: Float[Tensor, "b c h w"], skip: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c_out h w"]:
        if self.long_skip_concat:
            return torch.cat([x, skip * self.long_skip_scale], dim=1)
        return (x + skip) * self.long_skip_scale


def _resize(in_channels: int, out_channels: int, stride: int, first: nn.Module, conv_stride: int) -> nn.Module:
    """The convolution between two levels, or nothing where neither size nor channels change."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(first, nn.Conv2d(in_channels, out_channels, 3, stride=conv_stride, padding=1))


def _check(
    channels: list[int],
    strides: list[int],
    num_res_blocks: list[int],
    self_attention: list[bool],
    cross_attention: list[bool],
    num_heads: int,
    patch_size: int,
) -> None:
    """Refuse what cannot be built, in one sentence."""
    per_level = {
        "strides": strides,
        "num_res_blocks": num_res_blocks,
        "self_attention": self_attention,
        "cross_attention": cross_attention,
    }
    for name, values in per_level.items():
        if len(values) != len(channels):
            raise UserError(
                f"network.{name}={values} must have one entry per level, as many as network.channels={channels}"
            )
    if not channels or set(strides) - {1, 2}:
        raise UserError(f"network.strides={strides} must be 1 or 2 for each of one or more levels")
    if patch_size < 1:
        raise UserError(f"network.patch_size={patch_size} must be 1 (off) or more pixels")
    for width, attends in zip(channels, map(any, zip(self_attention, cross_attention, strict=True)), strict=True):
        if attends and width % num_heads:
            raise UserError(
                f"network.num_heads={num_heads} does not divide the {width} channels of a level with attention: "
                "change network.channels or num_heads"
            )
