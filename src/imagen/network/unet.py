"""The U-Net of the paper's 64x64 base stage: ADM's, with text in every self-attention and in the noise embedding."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.network.attention import SelfAttention
from imagen.network.blocks import Downsample, GroupNorm, ResBlock, Upsample, check_size, zero_init
from imagen.network.conditioning import ConditioningEmbedding, with_low_res
from imagen.null_text import NullText
from imagen.text_pooling import MakeTextPooling
from imagen.types import Conditioning, TextEmbedding


class Layer(nn.Module):
    """One residual block and the attention after it, if its resolution has one."""

    def __init__(self, block: ResBlock, attention: SelfAttention | None):
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"], text: TextEmbedding
    ) -> Float[Tensor, "b c_out h_out w_out"]:
        x = self.block(x, emb)
        return x if self.attention is None else self.attention(x, text)


class UNet(nn.Module):
    """ADM's U-Net (arXiv 2105.05233) as the paper's appendix F.1 sets it: ``(x_t, logsnr, cond) -> [b out h w]``.

    ``width`` channels times ``channel_mult`` at each level, the first at ``image_size`` pixels, each next at half;
    ``num_res_blocks`` of each level going down and one more going up; attention after every block at the levels whose
    side is in ``attention_resolutions``, over the picture alone where it is not in ``text_resolutions`` too. Every
    output of the way down is concatenated to an input of the way up. Other sizes than ``image_size`` are taken as well:
    sides must be multiples of ``stride``, and attention stays with its levels. ``out_channels`` is 3, or 6 to learn a
    variance too. The output is float32 and starts as zero.
    """

    def __init__(
        self,
        null_text: NullText,
        make_text_pooling: MakeTextPooling,
        *,
        image_size: int,
        text_width: int,
        text_norm: bool,
        width: int,
        emb_mult: int,
        channel_mult: list[int],
        num_res_blocks: list[int],
        attention_resolutions: list[int],
        text_resolutions: list[int],
        head_channels: int,
        qk_norm: bool,
        skip_scale: float,
        low_res: bool,
        out_channels: int,
    ):
        super().__init__()
        _check(image_size, channel_mult, num_res_blocks, attention_resolutions, text_resolutions, width, head_channels)
        sides = _sides(image_size, channel_mult)
        self.low_res = low_res
        self.stride = 2 ** (len(channel_mult) - 1)
        emb_width = emb_mult * width

        def layer(in_channels: int, out_channels: int, side: int, resample: nn.Module, attention: bool) -> Layer:
            block = ResBlock(in_channels, out_channels, emb_width, resample, skip_scale)
            if not (attention and side in attention_resolutions):
                return Layer(block, None)
            options = {"skip_scale": skip_scale, "text_norm": text_norm, "qk_norm": qk_norm}
            heads, reads_text = out_channels // head_channels, side in text_resolutions
            return Layer(block, SelfAttention(out_channels, heads, emb_width, reads_text=reads_text, **options))

        self.embedding = ConditioningEmbedding(
            null_text,
            make_text_pooling,
            width,
            emb_width,
            text_width,
            low_res=low_res,
            text_norm=text_norm,
            attends=bool(set(sides) & set(text_resolutions)),
        )
        channels = width * channel_mult[0]
        self.conv_in = nn.Conv2d(6 if low_res else 3, channels, 3, padding=1)

        self.down = nn.ModuleList()
        skips = [channels]
        for level, (mult, blocks, side) in enumerate(zip(channel_mult, num_res_blocks, sides, strict=True)):
            for _ in range(blocks):
                self.down.append(layer(channels, width * mult, side, nn.Identity(), True))
                channels = width * mult
                skips.append(channels)
            if level < len(sides) - 1:
                self.down.append(layer(channels, channels, side // 2, Downsample(), False))
                skips.append(channels)

        self.middle = nn.ModuleList(
            [
                layer(channels, channels, sides[-1], nn.Identity(), True),
                layer(channels, channels, sides[-1], nn.Identity(), False),
            ]
        )

        self.up = nn.ModuleList()
        self.upsample = nn.ModuleList()
        for level in reversed(range(len(sides))):
            mult, side = channel_mult[level], sides[level]
            stage = nn.ModuleList()
            for _ in range(num_res_blocks[level] + 1):
                stage.append(layer(channels + skips.pop(), width * mult, side, nn.Identity(), True))
                channels = width * mult
            self.up.append(stage)
            if level > 0:
                self.upsample.append(layer(channels, channels, side * 2, Upsample(), False))
        assert not skips

        self.norm_out = GroupNorm(channels, silu=True)
        self.conv_out = zero_init(nn.Conv2d(channels, out_channels, 3, padding=1))

    def forward(
        self, x_t: Float[Tensor, "b 3 h w"], logsnr: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b out h w"]:
        check_size(x_t.shape[2], x_t.shape[3], self.stride)
        emb, text = self.embedding(logsnr, cond)
        x = self.conv_in(with_low_res(x_t, cond.low_res) if self.low_res else x_t)
        skips = [x]
        for layer in self.down:
            x = layer(x, emb, text)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, emb, text)
        for level, stage in enumerate(self.up):
            if level > 0:
                x = self.upsample[level - 1](x, emb, text)
            assert isinstance(stage, nn.ModuleList)
            for layer in stage:
                x = layer(torch.cat([x, skips.pop()], dim=1), emb, text)
        return self.conv_out(self.norm_out(x)).float()


def _sides(image_size: int, channel_mult: list[int]) -> list[int]:
    return [image_size // 2**level for level in range(len(channel_mult))]


def _check(
    image_size: int,
    channel_mult: list[int],
    num_res_blocks: list[int],
    attention_resolutions: list[int],
    text_resolutions: list[int],
    width: int,
    head_channels: int,
) -> None:
    """Refuse what cannot be built, in one sentence."""
    if len(channel_mult) != len(num_res_blocks):
        raise UserError(
            f"network.num_res_blocks={num_res_blocks} must have one number per level, as many as "
            f"network.channel_mult={channel_mult}"
        )
    if image_size % 2 ** (len(channel_mult) - 1):
        raise UserError(
            f"resolution={image_size} cannot be halved {len(channel_mult) - 1} times: choose a multiple of "
            f"{2 ** (len(channel_mult) - 1)} or a shorter network.channel_mult={channel_mult}"
        )
    if set(text_resolutions) - set(attention_resolutions):
        raise UserError(
            f"network.text_resolutions={text_resolutions} must be among network.attention_resolutions="
            f"{attention_resolutions}: the text is read by self-attention"
        )
    sides = _sides(image_size, channel_mult)
    if strangers := sorted(set(attention_resolutions) - set(sides), reverse=True):
        raise UserError(
            f"network.attention_resolutions={attention_resolutions} does not go with resolution={image_size} and "
            f"network.channel_mult={channel_mult}: {', '.join(map(str, strangers))} is the side of no level; "
            f"there are {', '.join(map(str, sides))} pixels"
        )
    for side, mult in zip(sides, channel_mult, strict=True):
        if side in attention_resolutions and width * mult % head_channels:
            raise UserError(
                f"network.head_channels={head_channels} does not divide the {width * mult} channels at {side} pixels: "
                f"change network.width={width} or head_channels"
            )
