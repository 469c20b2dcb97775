"""What the backward pass finds kept from the forward pass, and what it computes again to save memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from imagen.network.layers import layers_of

aten = torch.ops.aten

KEPT = {
    *(aten.convolution.default, aten.mm.default, aten.addmm.default, aten.bmm.default),
    aten.baddbmm.default,
    *(
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    ),
}
"""What is dear to compute for the bytes of its result: convolutions, matrix products, attention."""

Contexts = tuple[AbstractContextManager[object], AbstractContextManager[object]]


class Recompute(ABC):
    """Changes how much of a network's layers is kept between the passes, and no number that they compute."""

    @abstractmethod
    def apply(self, network: nn.Module) -> None:
        """Make it so for every layer of ``network``, the residual blocks and attention layers."""


class NoRecompute(Recompute):
    """Everything is kept: the fastest."""

    def apply(self, network: nn.Module) -> None: ...


class SelectiveRecompute(Recompute):
    """Results of convolutions, matrix products and attention are kept; norms, activations and sums computed again."""

    def apply(self, network: nn.Module) -> None:
        _checkpoint_layers(network, context_fn=_selective)


class FullRecompute(Recompute):
    """Of each layer its input alone is kept, and the layer computed again: a third more work, the least memory."""

    def apply(self, network: nn.Module) -> None:
        _checkpoint_layers(network)


def _selective() -> Contexts:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def _checkpoint_layers(network: nn.Module, **contexts: Callable[[], Contexts]) -> None:
    # in place of the layer's own forward: a module around it would change the names of its weights
    for layer in layers_of(network):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False, **contexts)
