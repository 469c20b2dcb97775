"""What the text adds to the embedding of the noise level: the arms of the paper's figure A.13a.

Its pooled arms read no text by attention; that is the network's own choice, of where its attention does.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.network.attention import layer_norm
from imagen.network.blocks import mlp
from imagen.network.kernels import attend
from imagen.types import TextEmbedding


class TextPooling(nn.Module, ABC):
    """A text of any length as one vector of its own width, part of the network; ``reads_text`` where it tells of it.

    The network makes it, since it alone knows the ``width`` and whether LayerNorm goes before all that reads text.
    """

    reads_text = True

    def __init__(self, width: int, text_norm: bool) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, text: TextEmbedding) -> Float[Tensor, "b d"]:
        """The same whatever the padding, and finite for a prompt of padding alone."""


MakeTextPooling = Callable[[int, bool], TextPooling]
"""``(width, text_norm) -> TextPooling``: an option with its hyperparameters, but for what only the network knows."""


class PooledText(TextPooling):
    """What ``pool`` makes of the text, LayerNormed, through an MLP."""

    def __init__(self, pool: nn.Module, width: int, text_norm: bool) -> None:
        super().__init__(width, text_norm)
        self.pool = pool
        self.mlp = nn.Sequential(layer_norm(width, text_norm), mlp(width, width))

    def forward(self, text: TextEmbedding) -> Float[Tensor, "b d"]:
        return self.mlp(self.pool(text))


class AttentionPooling(PooledText):
    """Pooled by attention to the tokens from their mean (paper, section 2.5), in heads of ``head_channels`` each.

    There is one head where these would not divide the width.
    """

    def __init__(self, width: int, text_norm: bool, *, head_channels: int) -> None:
        if head_channels < 1:
            raise UserError(f"text_pooling.head_channels={head_channels} must be at least 1")
        super().__init__(AttentionPool(width, text_norm, head_channels), width, text_norm)


class MeanPooling(PooledText):
    """Pooled to the mean of the real tokens (paper, figure A.13a)."""

    def __init__(self, width: int, text_norm: bool) -> None:
        super().__init__(MeanPool(width, text_norm), width, text_norm)


class NoPooling(TextPooling):
    """Nothing: the text reaches the picture by attention alone (paper, figure A.13a)."""

    reads_text = False

    def __init__(self, width: int, text_norm: bool) -> None:
        super().__init__(width, text_norm)
        self.width = width

    def forward(self, text: TextEmbedding) -> Float[Tensor, "b d"]:
        return text.tokens.new_zeros(text.tokens.shape[0], self.width)


class AttentionPool(nn.Module):
    """The LayerNormed tokens, averaged by an attention whose query is their mean.

    The mean is also among the keys, so a prompt of padding alone has something to look at: a zero in its place.
    """

    def __init__(self, width: int, text_norm: bool, head_channels: int) -> None:
        super().__init__()
        self.num_heads = width // head_channels if width % head_channels == 0 else 1
        self.norm = layer_norm(width, text_norm)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)

    def forward(self, text: TextEmbedding) -> Float[Tensor, "b d"]:
        tokens = self.norm(text.tokens)
        mean = _mean_of_real(tokens, text)[:, None]
        q = self.q(mean).unflatten(2, (self.num_heads, -1))
        k, v = self.kv(torch.cat([mean, tokens], dim=1)).unflatten(2, (2, self.num_heads, -1)).unbind(2)
        return attend(q, k, v, F.pad(text.mask, (1, 0), value=True)).squeeze(1)


class MeanPool(nn.Module):
    """The mean of the real tokens, each LayerNormed; zero for a prompt of padding alone."""

    def __init__(self, width: int, text_norm: bool) -> None:
        super().__init__()
        self.norm = layer_norm(width, text_norm)

    def forward(self, text: TextEmbedding) -> Float[Tensor, "b d"]:
        return _mean_of_real(self.norm(text.tokens), text)


def _mean_of_real(tokens: Float[Tensor, "b n d"], text: TextEmbedding) -> Float[Tensor, "b d"]:
    kept = tokens.masked_fill(~text.mask[:, :, None], 0.0)
    return kept.sum(1) / text.mask.sum(1).clamp(min=1)[:, None]
