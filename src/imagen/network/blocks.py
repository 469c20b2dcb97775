"""Parts that every network is made of: residual blocks, attention with text, the embedding of noise and text.

Axis letters beside those of ``imagen.types``: ``e`` embedding width, ``k`` attention heads, ``s`` positions (h*w).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen.network.kernels import attend, group_norm
from imagen.null_text import NullText
from imagen.types import Conditioning, TextEmbedding

NORM_GROUPS = 32
"""Groups of every GroupNorm, as in ADM; fewer where a group would have less than ``MIN_GROUP_CHANNELS``."""

MIN_GROUP_CHANNELS = 4
"""ADM's narrowest group (128 channels in 32). A channel normalised by itself forgets how bright the picture is."""

POOL_HEAD_CHANNELS = 64
"""Channels of each head that pools the text; one head where they would not divide the text's width."""


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
    """GroupNorm of at most 32 groups, with an optional scale and shift of each example's channels.

    With ``scale_shift`` (``[b, 2c]``: scale, then shift) it is ADM's: ``norm(x) * (1 + scale) + shift``.
    """

    def __init__(self, channels: int):
        super().__init__()
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
        return group_norm(x, self.num_groups, gain, bias)


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
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = unit_init(nn.Linear(emb_width, 2 * out_channels))
        self.norm2 = GroupNorm(out_channels)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b c_out h_out w_out"]:
        """``emb`` is the embedding after its last SiLU, as ``ConditioningEmbedding`` gives it."""
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        h = self.conv2(F.silu(self.norm2(h, self.scale_shift(emb))))
        x = self.skip(self.resample(x)) + h
        return x if self.skip_scale == 1.0 else x * self.skip_scale


class SelfAttention(nn.Module):
    """Residual self-attention whose keys and values are the picture's and, after them, the text's (paper, D.3.1).

    The text passes its own LayerNorm first (section 2.5). Padding is never attended to; with no text at all this is
    plain self-attention.
    """

    def __init__(self, channels: int, num_heads: int, text_width: int, skip_scale: float):
        super().__init__()
        self.num_heads = num_heads
        self.skip_scale = skip_scale
        self.norm = GroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.text_norm = nn.LayerNorm(text_width)
        self.text_kv = nn.Linear(text_width, 2 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "b c h w"], text: TextEmbedding) -> Float[Tensor, "b c h w"]:
        h = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(h).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        text_k, text_v = self.text_kv(self.text_norm(text.tokens)).unflatten(2, (2, self.num_heads, -1)).unbind(2)
        visible = F.pad(text.mask, (h.shape[1], 0), value=True)
        h = self.out(attend(q, torch.cat([k, text_k], dim=1), torch.cat([v, text_v], dim=1), visible))
        x = x + h.transpose(1, 2).unflatten(2, x.shape[2:])
        return x if self.skip_scale == 1.0 else x * self.skip_scale


class CrossAttention(nn.Module):
    """Residual attention from the picture to the text alone, as the paper's 256 to 1024 network uses it (F.3).

    A learned null key and value stand beside the text, so that a prompt of padding alone has something to look at.
    """

    def __init__(self, channels: int, num_heads: int, text_width: int, skip_scale: float):
        super().__init__()
        self.num_heads = num_heads
        self.skip_scale = skip_scale
        self.norm = GroupNorm(channels)
        self.q = nn.Linear(channels, channels)
        self.text_norm = nn.LayerNorm(text_width)
        self.text_kv = nn.Linear(text_width, 2 * channels)
        self.null_kv = nn.Parameter(torch.zeros(1, 1, 2 * channels))
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "b c h w"], text: TextEmbedding) -> Float[Tensor, "b c h w"]:
        q = self.q(self.norm(x).flatten(2).transpose(1, 2)).unflatten(2, (self.num_heads, -1))
        text_kv = self.text_kv(self.text_norm(text.tokens))
        kv = torch.cat([self.null_kv.to(text_kv.dtype).expand(len(x), -1, -1), text_kv], dim=1)
        k, v = kv.unflatten(2, (2, self.num_heads, -1)).unbind(2)
        h = self.out(attend(q, k, v, F.pad(text.mask, (1, 0), value=True)))
        x = x + h.transpose(1, 2).unflatten(2, x.shape[2:])
        return x if self.skip_scale == 1.0 else x * self.skip_scale


class AttentionPool(nn.Module):
    """The text as one vector: its LayerNormed tokens, averaged by an attention whose query is their mean (paper, 2.5).

    The mean is also among the keys, so a prompt of padding alone has something to look at: a zero in its place.
    """

    def __init__(self, text_width: int):
        super().__init__()
        self.num_heads = text_width // POOL_HEAD_CHANNELS if text_width % POOL_HEAD_CHANNELS == 0 else 1
        self.norm = nn.LayerNorm(text_width)
        self.q = nn.Linear(text_width, text_width)
        self.kv = nn.Linear(text_width, 2 * text_width)

    def forward(self, text: TextEmbedding) -> Float[Tensor, "b d"]:
        tokens = self.norm(text.tokens)
        kept = tokens.masked_fill(~text.mask[:, :, None], 0.0)
        mean = kept.sum(1, keepdim=True) / text.mask.sum(1).clamp(min=1)[:, None, None]
        q = self.q(mean).unflatten(2, (self.num_heads, -1))
        k, v = self.kv(torch.cat([mean, tokens], dim=1)).unflatten(2, (2, self.num_heads, -1)).unbind(2)
        return attend(q, k, v, F.pad(text.mask, (1, 0), value=True)).squeeze(1)


class LogSNREmbedding(nn.Module):
    """A log-SNR as a vector: sines and cosines, ``width`` of them, then a two-layer MLP.

    Periods run geometrically from 0.5 to 80 nats, so that levels a tenth of a nat apart differ and the range
    -20 to 20 never wraps.
    """

    def __init__(self, width: int, emb_width: int):
        super().__init__()
        periods = torch.logspace(math.log10(0.5), math.log10(80.0), width // 2)
        self.register_buffer("frequencies", 2 * math.pi / periods, persistent=False)
        self.frequencies: Tensor
        self.mlp = mlp(2 * (width // 2), emb_width)

    def forward(self, logsnr: Float[Tensor, " b"]) -> Float[Tensor, "b e"]:
        angles = logsnr.float()[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class ConditioningEmbedding(nn.Module):
    """The conditioning as the blocks take it: ``emb`` for the residual blocks, ``text`` for the attention layers.

    ``emb`` is noise level + pooled text (+ the noise level of the low-resolution picture), after the SiLU that would
    else be repeated in every block. ``text`` is the tokens brought once to ``emb_width``, so that the attention layers
    stay slim beside a wide encoder.
    """

    def __init__(self, null_text: NullText, width: int, emb_width: int, text_width: int, low_res: bool):
        super().__init__()
        self.null_text = null_text
        self.noise = LogSNREmbedding(width, emb_width)
        self.low_res_noise = LogSNREmbedding(width, emb_width) if low_res else None
        self.text = unit_init(nn.Linear(text_width, emb_width))
        self.pool = AttentionPool(emb_width)
        self.pooled = nn.Sequential(nn.LayerNorm(emb_width), mlp(emb_width, emb_width))

    def forward(self, logsnr: Float[Tensor, " b"], cond: Conditioning) -> tuple[Float[Tensor, "b e"], TextEmbedding]:
        text = self.null_text(cond.text)
        text = TextEmbedding(self.text(text.tokens), text.mask, text.absent)
        emb = self.noise(logsnr) + self.pooled(self.pool(text))
        if self.low_res_noise is not None:
            assert cond.low_res_logsnr is not None
            emb = emb + self.low_res_noise(cond.low_res_logsnr)
        return F.silu(emb), text


def with_low_res(x_t: Float[Tensor, "b 3 h w"], low_res: Float[Tensor, "b 3 hl wl"] | None) -> Float[Tensor, "b 6 h w"]:
    """The noisy picture and, as three more channels, the low-resolution one enlarged bilinearly to its size."""
    assert low_res is not None, "this network enlarges a picture: it needs cond.low_res"
    return torch.cat([x_t, F.interpolate(low_res, size=x_t.shape[2:], mode="bilinear")], dim=1)
