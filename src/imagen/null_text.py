"""What a network sees where a prompt is absent: under caption dropout in training, in guidance's other half."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen.errors import UserError
from imagen.types import TextEmbedding

Encode = Callable[[list[str]], TextEmbedding]
"""A text encoder's ``encode``."""

Broadcast = Callable[[Tensor], Tensor]
"""In every process of a training, the first one's tensor."""


class NullText(nn.Module, ABC):
    """Puts something in place of absent prompts. It is part of the network: trained, averaged and exported with it."""

    @abstractmethod
    def forward(self, text: TextEmbedding) -> TextEmbedding:
        """The text with its absent prompts replaced."""

    def fill(self, encode: Encode) -> None:
        """Take in what it needs of the text encoder, when training starts; from then on it travels with the weights."""

    def check(self) -> None:
        """Raises: UserError if it must be filled and is not."""


class ZeroedText(NullText):
    """Every token zero, under the prompt's own mask (paper, section 4.1: "zeroing out the text embeddings")."""

    def forward(self, text: TextEmbedding) -> TextEmbedding:
        zero = text.tokens.new_zeros(())
        return TextEmbedding(torch.where(text.absent[:, None, None], zero, text.tokens), text.mask, text.absent)


class LearnedText(NullText):
    """One trained vector in place of every real token, under the prompt's own mask. Not in the paper."""

    def __init__(self, *, text_width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(nn.init.normal_(torch.empty(text_width)))

    def forward(self, text: TextEmbedding) -> TextEmbedding:
        replaced = (text.absent[:, None] & text.mask)[:, :, None]
        tokens = torch.where(replaced, self.token.to(text.tokens.dtype), text.tokens)
        return TextEmbedding(tokens, text.mask, text.absent)


class EmptyCaption(NullText):
    """The encoder's own embedding of "" and its mask, in buffers that travel with the weights (as GLIDE's, 2112.10741).

    ``max_length`` is the encoder's. A batch is never shorter than the empty caption: its tokens are the special ones,
    which every caption has.
    """

    def __init__(self, *, text_width: int, max_length: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.zeros(max_length, text_width))
        self.register_buffer("mask", torch.zeros(max_length, dtype=torch.bool))
        self.tokens: Tensor
        self.mask: Tensor

    def fill(self, encode: Encode) -> None:
        """Raises: UserError if the encoder's width or length is not the one declared."""
        text = encode([""])
        max_length, text_width = self.tokens.shape
        if text.tokens.shape[2] != text_width or text.tokens.shape[1] > max_length:
            raise UserError(
                f"null_text.text_width={text_width} and max_length={max_length} do not fit the text encoder, whose "
                f"empty caption has {text.tokens.shape[1]} tokens of width {text.tokens.shape[2]}: set them to the "
                "encoder's own"
            )
        padded = text.padded(max_length)
        self.tokens.copy_(padded.tokens[0])
        self.mask.copy_(padded.mask[0])

    def check(self) -> None:
        if not self.mask.any():
            raise UserError(
                "null_text=empty_caption has no embedding of the empty caption yet: give its fill() the text encoder's "
                "encode, as train.py does when training starts, or load weights that hold one"
            )

    def forward(self, text: TextEmbedding) -> TextEmbedding:
        more = text.mask.shape[1] - self.mask.shape[0]
        tokens = F.pad(self.tokens, (0, 0, 0, more)).to(text.tokens.dtype)  # a negative padding cuts
        mask = F.pad(self.mask, (0, more))
        absent = text.absent[:, None]
        return TextEmbedding(
            torch.where(absent[:, :, None], tokens, text.tokens), torch.where(absent, mask, text.mask), text.absent
        )


def fill_null_text(module: nn.Module, encode: Encode) -> None:
    """Fill every null text in ``module``: the network's, and its average's."""
    for part in _null_texts(module):
        part.fill(encode)


def share_null_text(module: nn.Module, broadcast: Broadcast) -> None:
    """Give every null text in ``module`` what the first process has filled its own with: one alone needs the encoder.

    Called by all processes at once.
    """
    for part in _null_texts(module):
        for buffer in part.buffers():
            buffer.copy_(broadcast(buffer.cpu()))  # pickled on its way, with its device


def check_null_text(module: nn.Module) -> None:
    """Raises: UserError if a null text in ``module`` must be filled and is not."""
    for part in _null_texts(module):
        part.check()


def _null_texts(module: nn.Module) -> list[NullText]:
    return [part for part in module.modules() if isinstance(part, NullText)]
