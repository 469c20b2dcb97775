"""Parameters, gradients, optimizer state and average divided among the processes (ZeRO 3; torch's ``fully_shard``)."""

from datetime import timedelta
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from imagen.network.layers import layers_of
from imagen.ranges import Count


class FSDP2(ModelParallelStrategy):
    """Each process holds its share of every parameter, and gathers a layer's when it comes to compute with it.

    ``sharded_checkpoints`` writes a folder to which each process adds its own part, instead of one file gathered in
    the first. A rank that waits longer than ``timeout_minutes`` for the others ends with an error.
    """

    def __init__(self, *, sharded_checkpoints: bool, timeout_minutes: Count) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=sharded_checkpoints,
            timeout=timedelta(minutes=timeout_minutes),
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's own "auto" is the number of nodes
        super().setup_environment()

    def shard(self, module: nn.Module, method: str) -> None:
        """Divide a module's parameters, layer by layer, before an optimizer is made of them.

        Each process must hold the same ones. ``method`` is what computes with them.
        """
        if not any(True for _ in module.parameters()):
            return
        module.to(self.root_device)
        if not all(parameter.is_contiguous() for parameter in module.parameters()):
            _leave_layout_to_the_input(module)
        # gathered anew for the backward pass, at the root too: so between passes every parameter is a share
        divide = partial(fully_shard, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)
        for layer in layers_of(module):
            divide(layer)
        divide(module)
        if method != "forward":
            register_fsdp_forward_method(module, method)


def _leave_layout_to_the_input(network: nn.Module) -> None:
    """``fully_shard`` takes contiguous parameters alone; a channels_last picture has the same effect."""
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()

    def relaid(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        picture, *others = args
        return (picture.contiguous(memory_format=torch.channels_last), *others)

    network.register_forward_pre_hook(relaid)
