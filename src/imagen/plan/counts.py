"""What one training picture takes of a network, counted on the meta device."""

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from imagen import build
from imagen.network.layers import layers_of
from imagen.summary import example, summarize


@dataclass(frozen=True)
class Counts:
    """Of one stage: numbers of parameters, bytes of states, and floating-point operations and bytes of a picture.

    - ``forward_flops``, ``step_flops``: forward alone, and forward and backward; convolutions, matrix products and
      attention, a multiply-add as two.
    - ``kept_bytes``: what is kept for the backward pass; ``recomputed_bytes``: the same where of every block the input
      alone is kept, and one block at a time made anew.
    - ``block_parameters``: of the largest block; ``root_parameters``: of all that is in none.
    """

    parameters: int
    block_parameters: int
    root_parameters: int
    optimizer_bytes: int
    ema_bytes: int
    forward_flops: int
    step_flops: int
    kept_bytes: int
    recomputed_bytes: int


def count(cfg: DictConfig) -> Counts:
    """The counts of a training run's config: of a picture, or of the crop that it trains on."""
    summary = summarize(cfg)
    with torch.device("meta"):
        network = build.build_network(cfg)
        inputs = example(cfg, cfg.data.get("crop") or cfg.resolution)
    kept = _Kept(network)
    with kept, FlopCounterMode(display=False) as forward:
        network(*inputs)
    of_blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in kept.blocks]
    return Counts(
        parameters=summary["parameters"],
        block_parameters=max(of_blocks),
        root_parameters=summary["parameters"] - sum(of_blocks),
        optimizer_bytes=summary["optimizer_bytes"],
        ema_bytes=summary["ema_bytes"],
        forward_flops=forward.get_total_flops(),
        step_flops=summary["training_flops"],
        kept_bytes=summary["activation_bytes"],
        # of the share that is left, since under autocast nearly all is half as wide as on the meta device
        recomputed_bytes=round(summary["activation_bytes"] * kept.recomputed / kept.whole),
    )


class _Kept:
    """Bytes that a forward pass within keeps for the backward pass, each storage once."""

    def __init__(self, network: nn.Module) -> None:
        self.blocks = list(layers_of(network))
        self._seen = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        self._holding: list[Tensor] = []  # so that no storage is freed and its address given to the next
        self._block: nn.Module | None = None
        self._bytes: dict[nn.Module | None, int] = {}
        self._input_bytes = 0

    @property
    def whole(self) -> int:
        return sum(self._bytes.values()) + self._input_bytes

    @property
    def recomputed(self) -> int:
        """With every block's inside made anew, the largest at its height."""
        inside = [size for block, size in self._bytes.items() if block is not None]
        return self._bytes.get(None, 0) + self._input_bytes + max(inside, default=0)

    def __enter__(self) -> None:
        self._hooks = [block.register_forward_pre_hook(self._into) for block in self.blocks]
        self._hooks += [block.register_forward_hook(self._out_of) for block in self.blocks]
        self._saving = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._saving.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._saving.__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _into(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        self._input_bytes += sum(self._new_bytes(value) for value in args if isinstance(value, Tensor))
        self._block = block

    def _out_of(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._block = None

    def _pack(self, tensor: Tensor) -> Tensor:
        self._bytes[self._block] = self._bytes.get(self._block, 0) + self._new_bytes(tensor)
        return tensor

    def _new_bytes(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return 0
        self._seen.add(storage._cdata)
        self._holding.append(tensor)
        return storage.nbytes()
