"""The layers of a network: what it is sharded by, and what it may compute again in the backward pass."""

from collections.abc import Iterator

from torch import nn

from imagen.network.attention import CrossAttention, SelfAttention
from imagen.network.blocks import ResBlock

LAYERS = (ResBlock, SelfAttention, CrossAttention)


def layers_of(network: nn.Module) -> Iterator[nn.Module]:
    """Its residual blocks and attention layers, outermost first where one holds another."""
    for child in network.children():
        if isinstance(child, LAYERS):
            yield child
        else:
            yield from layers_of(child)
