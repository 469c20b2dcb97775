"""A small text embedding and weights that tell, for tests of networks."""

import torch
from torch import nn

from imagen.types import TextEmbedding


def text(lengths: list[int], padding: float = 0.0, padded_to: int = 5, width: int = 16) -> TextEmbedding:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(padded_to) < torch.tensor(lengths)[:, None]
    tokens = torch.randn(len(lengths), 20, width, generator=generator)[:, :padded_to]
    return TextEmbedding(tokens.masked_fill(~mask[:, :, None], padding), mask)


def randomize(module: nn.Module, std: float = 0.3) -> nn.Module:
    """The module with noise on all its weights: what starts as zero tells in the output too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    return module
