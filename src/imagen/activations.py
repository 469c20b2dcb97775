"""What a training step keeps of a network's forward pass for the backward pass, counted on the meta device."""

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imagen.network.layers import layers_of
from imagen.recompute import KEPT

aten = torch.ops.aten


def width_of(cfg: DictConfig) -> int:
    """By how much what is kept is narrower than counted: the meta device knows no autocast, which halves nearly all."""
    return 2 if str(cfg.trainer.precision).startswith("bf16") else 1


class Activations:
    """What a forward pass within keeps for the backward pass, by option of recompute; each storage counts once."""

    def __init__(self, network: nn.Module) -> None:
        self.blocks = list(layers_of(network))
        self.repeated_bytes = 0
        self._own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        self._holding: dict[int, Tensor] = {}  # so that no storage is freed and its address given to the next
        self._block: nn.Module | None = None
        self._inputs: set[int] = set()
        self._saved: dict[nn.Module | None, set[int]] = defaultdict(set)
        self._results: set[int] = set()

    def kept_bytes(self) -> dict[str, int]:
        """By option, in the network's own precision."""
        outside = self._saved[None] | self._inputs
        inside = [saved for block, saved in self._saved.items() if block is not None]

        def size(kept: set[int]) -> int:
            return sum(self._holding[storage].untyped_storage().nbytes() for storage in kept)

        def with_the_largest(kept: set[int]) -> int:
            return size(kept) + max((size(saved - kept) for saved in inside), default=0)

        return {
            "none": size(set().union(*self._saved.values())),
            "selective": with_the_largest(outside | self._results),
            "full": with_the_largest(outside),
        }

    def __enter__(self) -> None:
        self._hooks = [block.register_forward_pre_hook(self._into) for block in self.blocks]
        self._hooks += [block.register_forward_hook(self._out_of) for block in self.blocks]
        saving = torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor)
        self._within = [saving, _Operations(self), FusedAttention()]
        for context in self._within:
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self._within):
            context.__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _into(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        self._inputs |= {self._seen(value) for value in args if isinstance(value, Tensor)}
        self._block = block

    def _out_of(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._block = None

    def _save(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in self._own:
            self._saved[self._block].add(self._seen(tensor))
        return tensor

    def _seen(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()._cdata
        self._holding[storage] = tensor
        return storage

    def computed(self, operation: Any, inputs: list[Tensor], results: list[Tensor]) -> None:
        """Take note of an operation: in a block, selective recomputation keeps its results, or repeats it."""
        if self._block is None:
            return
        if operation in KEPT:
            self._results |= {self._seen(result) for result in results}
            return
        sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in inputs}
        for result in results:
            storage = result.untyped_storage()
            if storage._cdata not in sizes:  # else it is a view, and nothing moves
                self.repeated_bytes += storage.nbytes() + sum(sizes.values())


class _Operations(TorchDispatchMode):
    def __init__(self, memory: Activations) -> None:
        super().__init__()
        self._memory = memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, results = ([t for t in tree_leaves(a) if isinstance(t, Tensor)] for a in ((args, kwargs), out))
        self._memory.computed(func, inputs, results)
        return out


class FusedAttention(TorchFunctionMode):
    """Attention by one kernel that keeps no matrix of weights, as a GPU has it and the meta device has not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        mask = (kwargs or {}).get("attn_mask")
        if mask is not None:
            shape = (*args[0].shape[:3], args[1].shape[2])
            mask = torch.zeros_like(mask, dtype=args[0].dtype).expand(shape)
        return aten._scaled_dot_product_efficient_attention(*args, mask, True)[0]
