"""A tensor that is spread over processes, for those who need their own part of it, or the whole."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def own_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Of each sharded tensor the part that lies in this process, sharing its memory; every other as it is.

    Tensors that are sharded alike can be worked on part by part, without a word between processes.
    """
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole_state(state: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Every tensor whole, contiguous and on the CPU; empty where it is not to be kept.

    All processes call it at once where tensors are sharded: one after the other is gathered, then let go of.
    """
    whole: dict[str, Tensor] = {}
    for name, value in state.items():
        tensor = gathered(value.detach())
        if keep:
            whole[name] = tensor.cpu().contiguous()
    return whole


def gathered(tensor: Tensor) -> Tensor:
    """The tensor whole. All processes call it at once where it is sharded."""
    with torch.no_grad():
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
