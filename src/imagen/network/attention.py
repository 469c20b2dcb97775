"""Attention layers: over the picture and the text together, or from the picture to the text alone."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from imagen.network.blocks import GroupNorm, zero_init
from imagen.network.kernels import attend
from imagen.types import TextEmbedding

EPSILON = 1e-6


class HeadNorm(nn.Module):
    """Each head's query or key over its root mean square, times a learned scale that all heads share.

    Bounds the attention logits of picture and text (query-key normalisation, arXiv 2010.04245; with RMS as in arXiv
    2403.03206, section 5.3.2). Not in the paper.
    """

    def __init__(self, head_channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(head_channels))

    def forward(self, x: Float[Tensor, "b s k c"]) -> Float[Tensor, "b s k c"]:
        wide = x.float()
        rms = wide.square().mean(dim=-1, keepdim=True).add(EPSILON).sqrt()
        return (wide / rms * self.scale).to(x.dtype)


def head_norm(head_channels: int, qk_norm: bool) -> nn.Module:
    """``HeadNorm``, or nothing where it is switched off."""
    return HeadNorm(head_channels) if qk_norm else nn.Identity()


def layer_norm(width: int, text_norm: bool) -> nn.Module:
    """LayerNorm on text (paper, section 2.5), or nothing where it is switched off."""
    return nn.LayerNorm(width) if text_norm else nn.Identity()


class TextKeys(nn.Module):
    """Puts the text's keys and values after those that an attention layer has already; padding is not visible."""

    def __init__(self, channels: int, num_heads: int, text_width: int, text_norm: bool, qk_norm: bool):
        super().__init__()
        self.num_heads = num_heads
        self.norm = layer_norm(text_width, text_norm)
        self.kv = nn.Linear(text_width, 2 * channels)
        self.k_norm = head_norm(channels // num_heads, qk_norm)

    def forward(
        self, k: Float[Tensor, "b j k c"], v: Float[Tensor, "b j k c"], text: TextEmbedding
    ) -> tuple[Float[Tensor, "b jn k c"], Float[Tensor, "b jn k c"], Bool[Tensor, "b jn"]]:
        text_k, text_v = self.kv(self.norm(text.tokens)).unflatten(2, (2, self.num_heads, -1)).unbind(2)
        visible = F.pad(text.mask, (k.shape[1], 0), value=True)
        return torch.cat([k, self.k_norm(text_k)], dim=1), torch.cat([v, text_v], dim=1), visible


class NoTextKeys(nn.Module):
    """The keys and values as they are: attention that reads no text."""

    def forward(
        self, k: Float[Tensor, "b j k c"], v: Float[Tensor, "b j k c"], text: TextEmbedding
    ) -> tuple[Float[Tensor, "b j k c"], Float[Tensor, "b j k c"], None]:
        return k, v, None


class SelfAttention(nn.Module):
    """Residual self-attention whose keys and values are the picture's and, after them, the text's (paper, D.3.1).

    With no text at all, or with ``reads_text`` off, this is plain self-attention.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        text_width: int,
        *,
        skip_scale: float,
        text_norm: bool,
        qk_norm: bool,
        reads_text: bool = True,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.skip_scale = skip_scale
        self.norm = GroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.q_norm = head_norm(channels // num_heads, qk_norm)
        self.k_norm = head_norm(channels // num_heads, qk_norm)
        self.text = TextKeys(channels, num_heads, text_width, text_norm, qk_norm) if reads_text else NoTextKeys()
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "b c h w"], text: TextEmbedding) -> Float[Tensor, "b c h w"]:
        h = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(h).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        h = self.out(attend(self.q_norm(q), *self.text(self.k_norm(k), v, text)))
        return _added(x, h, self.skip_scale)


class CrossAttention(nn.Module):
    """Residual attention from the picture to the text alone, as the paper's 256 to 1024 network uses it (F.3).

    A learned null key and value stand beside the text, so that a prompt of padding alone has something to look at.
    """

    def __init__(
        self, channels: int, num_heads: int, text_width: int, *, skip_scale: float, text_norm: bool, qk_norm: bool
    ):
        super().__init__()
        self.num_heads = num_heads
        self.skip_scale = skip_scale
        self.norm = GroupNorm(channels)
        self.q = nn.Linear(channels, channels)
        self.q_norm = head_norm(channels // num_heads, qk_norm)
        self.text = TextKeys(channels, num_heads, text_width, text_norm, qk_norm)
        self.null_kv = nn.Parameter(torch.zeros(1, 1, 2 * channels))
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "b c h w"], text: TextEmbedding) -> Float[Tensor, "b c h w"]:
        q = self.q(self.norm(x).flatten(2).transpose(1, 2)).unflatten(2, (self.num_heads, -1))
        null_kv = self.null_kv.to(q.dtype).expand(len(x), -1, -1)
        k, v = null_kv.unflatten(2, (2, self.num_heads, -1)).unbind(2)
        # the null key goes without the norm, which would multiply its gradient at zero, where it starts, by a thousand
        h = self.out(attend(self.q_norm(q), *self.text(k, v, text)))
        return _added(x, h, self.skip_scale)


def _added(x: Float[Tensor, "b c h w"], h: Float[Tensor, "b s c"], skip_scale: float) -> Float[Tensor, "b c h w"]:
    x = x + h.transpose(1, 2).unflatten(2, x.shape[2:])
    return x if skip_scale == 1.0 else x * skip_scale
