"""What a network sees where a prompt is absent: under caption dropout in training, in guidance's other half."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagen.types import TextEmbedding


class NullText(nn.Module, ABC):
    """Puts something in place of absent prompts. It is part of the network: trained, averaged and exported with it."""

    @abstractmethod
    def forward(self, text: TextEmbedding) -> TextEmbedding:
        """The text with its absent prompts replaced."""


class ZeroedText(NullText):
    """Every token zero, under the prompt's own mask (paper, section 4.1: "zeroing out the text embeddings")."""

    def forward(self, text: TextEmbedding) -> TextEmbedding:
        return TextEmbedding(_where_absent(text, text.tokens.new_zeros(())), text.mask, text.absent)


def _where_absent(text: TextEmbedding, value: Float[Tensor, "..."]) -> Float[Tensor, "b n d"]:
    return torch.where(text.absent[:, None, None], value, text.tokens)
