"""The conditioning as the blocks take it: noise levels and pooled text as one embedding, the text as tokens."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen.network.blocks import mlp, unit_init
from imagen.null_text import NullText
from imagen.text_pooling import MakeTextPooling
from imagen.types import Conditioning, TextEmbedding


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
    stay slim beside a wide encoder. ``attends`` says whether any of these reads the text. A network of which no part
    does has no weights for it, and draws the same whatever the prompt; ``reads_text`` tells.
    """

    def __init__(
        self,
        null_text: NullText,
        make_text_pooling: MakeTextPooling,
        width: int,
        emb_width: int,
        text_width: int,
        *,
        low_res: bool,
        text_norm: bool,
        attends: bool,
    ):
        super().__init__()
        self.null_text = null_text
        self.noise = LogSNREmbedding(width, emb_width)
        self.low_res_noise = LogSNREmbedding(width, emb_width) if low_res else None
        self.text = unit_init(nn.Linear(text_width, emb_width))
        self.pooled = make_text_pooling(emb_width, text_norm)
        self.reads_text = self.pooled.reads_text or attends
        if not self.reads_text:
            self.text = nn.Identity()  # DDP would wait for gradients of weights that nothing uses

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
