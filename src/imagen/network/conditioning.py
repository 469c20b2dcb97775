"""The conditioning as the blocks take it: noise levels and pooled text as one embedding, the text as tokens."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.network.attention import layer_norm
from imagen.network.blocks import mlp, unit_init
from imagen.network.kernels import attend
from imagen.null_text import NullText
from imagen.types import Conditioning, TextEmbedding

POOL_HEAD_CHANNELS = 64
"""Channels of each head that pools the text; one head where they would not divide the text's width."""


class AttentionPool(nn.Module):
    """The text as one vector: its LayerNormed tokens, averaged by an attention whose query is their mean (paper, 2.5).

    The mean is also among the keys, so a prompt of padding alone has something to look at: a zero in its place.
    """

    def __init__(self, text_width: int, text_norm: bool):
        super().__init__()
        self.num_heads = text_width // POOL_HEAD_CHANNELS if text_width % POOL_HEAD_CHANNELS == 0 else 1
        self.norm = layer_norm(text_width, text_norm)
        self.q = nn.Linear(text_width, text_width)
        self.kv = nn.Linear(text_width, 2 * text_width)

    def forward(self, text: TextEmbedding) -> Float[Tensor, "b d"]:
        tokens = self.norm(text.tokens)
        mean = _mean_of_real(tokens, text)[:, None]
        q = self.q(mean).unflatten(2, (self.num_heads, -1))
        k, v = self.kv(torch.cat([mean, tokens], dim=1)).unflatten(2, (2, self.num_heads, -1)).unbind(2)
        return attend(q, k, v, F.pad(text.mask, (1, 0), value=True)).squeeze(1)


class MeanPool(nn.Module):
    """The text as one vector: the mean of its real tokens, LayerNormed; zero for a prompt of padding alone."""

    def __init__(self, text_width: int, text_norm: bool):
        super().__init__()
        self.norm = layer_norm(text_width, text_norm)

    def forward(self, text: TextEmbedding) -> Float[Tensor, "b d"]:
        return _mean_of_real(self.norm(text.tokens), text)


def _mean_of_real(tokens: Float[Tensor, "b n d"], text: TextEmbedding) -> Float[Tensor, "b d"]:
    kept = tokens.masked_fill(~text.mask[:, :, None], 0.0)
    return kept.sum(1) / text.mask.sum(1).clamp(min=1)[:, None]


class PooledText(nn.Module):
    """What the text adds to the embedding of the noise level: pooled to one vector, LayerNormed, through an MLP."""

    reads_text = True

    def __init__(self, pool: nn.Module, width: int, text_norm: bool):
        super().__init__()
        self.pool = pool
        self.mlp = nn.Sequential(layer_norm(width, text_norm), mlp(width, width))

    def forward(self, text: TextEmbedding) -> Float[Tensor, "b d"]:
        return self.mlp(self.pool(text))


class NoPooledText(nn.Module):
    """Nothing: the text reaches the picture by attention alone."""

    reads_text = False

    def forward(self, text: TextEmbedding) -> Float[Tensor, "b d"]:
        return text.tokens.new_zeros(text.tokens.shape[0], text.tokens.shape[2])


POOLINGS = {
    "attention": lambda width, norm: PooledText(AttentionPool(width, norm), width, norm),
    "mean": lambda width, norm: PooledText(MeanPool(width, norm), width, norm),
    "none": lambda width, norm: NoPooledText(),
}
"""What ``text_pooling`` may be: the arms of the paper's figure A.13a (its pooled arms read no text by attention)."""


def pooled_text(text_pooling: str, width: int, *, text_norm: bool, attends: bool) -> nn.Module:
    """The pooling of that name; ``attends`` says whether any attention layer of the network reads the text.

    Raises: UserError if there is none of that name, or if the text would not be read at all.
    """
    if text_pooling not in POOLINGS:
        raise UserError(f"network.text_pooling={text_pooling} must be one of {', '.join(POOLINGS)}")
    pooled = POOLINGS[text_pooling](width, text_norm)
    if not (pooled.reads_text or attends):
        raise UserError(
            f"network.text_pooling={text_pooling} leaves the text unread, because no attention layer reads it: choose "
            "text_pooling=attention or mean, or give a level attention to the text"
        )
    return pooled


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
    """``emb`` for the residual blocks, ``text`` for the attention layers.

    ``emb`` is noise level + pooled text (+ the noise level of the low-resolution picture), after the SiLU that would
    else be repeated in every block. ``text`` is the tokens brought once to ``emb_width``, so that the attention layers
    stay slim beside a wide encoder.
    """

    def __init__(
        self,
        null_text: NullText,
        width: int,
        emb_width: int,
        text_width: int,
        *,
        low_res: bool,
        text_pooling: str,
        text_norm: bool,
        attends: bool,
    ):
        super().__init__()
        self.null_text = null_text
        self.noise = LogSNREmbedding(width, emb_width)
        self.low_res_noise = LogSNREmbedding(width, emb_width) if low_res else None
        self.text = unit_init(nn.Linear(text_width, emb_width))
        self.pooled = pooled_text(text_pooling, emb_width, text_norm=text_norm, attends=attends)

    def forward(self, logsnr: Float[Tensor, " b"], cond: Conditioning) -> tuple[Float[Tensor, "b e"], TextEmbedding]:
        text = self.null_text(cond.text)
        text = TextEmbedding(self.text(text.tokens), text.mask, text.absent)
        emb = self.noise(logsnr) + self.pooled(text)
        if self.low_res_noise is not None:
            assert cond.low_res_logsnr is not None
            emb = emb + self.low_res_noise(cond.low_res_logsnr)
        return F.silu(emb), text


def with_low_res(x_t: Float[Tensor, "b 3 h w"], low_res: Float[Tensor, "b 3 hl wl"] | None) -> Float[Tensor, "b 6 h w"]:
    """The noisy picture and, as three more channels, the low-resolution one enlarged bilinearly to its size."""
    assert low_res is not None, "this network enlarges a picture: it needs cond.low_res"
    return torch.cat([x_t, F.interpolate(low_res, size=x_t.shape[2:], mode="bilinear")], dim=1)
