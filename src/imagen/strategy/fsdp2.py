"""Parameters, gradients, optimizer state and average divided among the processes (ZeRO 3; torch's ``fully_shard``)."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from imagen.network.layers import layers_of
from imagen.ranges import Count
from imagen.sharded_checkpoint import load_file, load_folder, write_folder


class FSDP2(ModelParallelStrategy):
    """Each process holds its share of every parameter, and gathers a layer's when it comes to compute with it.

    ``sharded_checkpoints`` writes a folder to which each process adds its own part, instead of one file gathered in
    the first. ``reduce_every_micro_batch`` leaves each process its share of the gradients between micro-batches too;
    without it they are summed whole in each, and go over the network once a step. A rank that waits longer than
    ``timeout_minutes`` for the others ends with an error.
    """

    def __init__(self, *, sharded_checkpoints: bool, reduce_every_micro_batch: bool, timeout_minutes: Count) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=sharded_checkpoints,
            timeout=timedelta(minutes=timeout_minutes),
        )
        self.reduce_every_micro_batch = reduce_every_micro_batch
        self._divided: list[FSDPModule] = []

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # Lightning's own "auto" is the number of nodes
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        if self._save_distributed_checkpoint:
            write_folder(checkpoint, Path(self.broadcast(str(filepath))))
        else:
            super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(str(checkpoint_path)))
        assert self.model is not None
        return (load_folder if path.is_dir() else load_file)(path, self.model, self.optimizers)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """While micro-batches accumulate."""
        self._reduce(self.reduce_every_micro_batch)
        yield
        self._reduce(True)

    def _reduce(self, on: bool) -> None:
        for module in self._divided:
            module.set_requires_gradient_sync(on)

    def shard(self, network: nn.Module) -> None:
        """Divide a network's parameters, layer by layer, before an optimizer is made; all processes have the same ones.

        Between passes every parameter is a share, the root's too: they are gathered anew for the backward pass.
        """
        network.to(self.root_device)
        if not all(parameter.is_contiguous() for parameter in network.parameters()):
            _leave_layout_to_the_input(network)
        divide = partial(fully_shard, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)
        for layer in layers_of(network):
            divide(layer)
        self._divided.append(divide(network))

    def compile(self, network: nn.Module) -> None:
        """Compile each layer in place; the gathering of its parameters, which no graph takes, stays outside."""
        layers = list(layers_of(network))
        for layer in layers:  # each for its own sizes: they are not one layer's that change
            layer.forward = torch.compile(layer.forward, fullgraph=True, dynamic=False)
        # torch counts what it compiles of one function, which residual blocks of every size have in common
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 2 * len(layers))

    def shard_method(self, module: nn.Module, method: str) -> None:
        """Divide the parameters, if any, of a small module that is called by ``method``, which may call its forward."""
        if any(True for _ in module.parameters()):
            module.to(self.root_device)
            divided = fully_shard(module, mesh=self.device_mesh["data_parallel"], reshard_after_forward=False)
            self._divided.append(divided)
            register_fsdp_forward_method(module, method)


def _leave_layout_to_the_input(network: nn.Module) -> None:
    """``fully_shard`` takes contiguous parameters alone; a channels_last picture has the same effect."""
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()

    def relaid(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        picture, *others = args
        return (picture.contiguous(memory_format=torch.channels_last), *others)

    network.register_forward_pre_hook(relaid)
