"""A network on a device only while it works there, so that one at a time takes the device's memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def visiting(module: nn.Module, device: torch.device | str) -> Iterator[None]:
    """``module`` with its parameters and buffers on ``device``; afterwards they are those of before, where they were.

    Nothing is copied back: what a module learns or notes on its visit is gone.
    """
    tensors = [*module.parameters(), *module.buffers()]
    at_home = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.to(device)
        yield
    finally:
        for tensor, data in zip(tensors, at_home, strict=True):
            tensor.data = data
