"""How a global batch is done in pieces that a device holds: accumulated micro-batches, and how large they may be."""

from collections.abc import Callable
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from imagen.errors import UserError
from imagen.lightning_module import DiffusionModule
from imagen.types import Batch

ROOM = 0.9
"""The share of a GPU's memory that a micro-batch may take with all else: validation and communication need some too."""


def accumulation(batch_size: int, micro_batch_size: int | None, processes: int) -> int:
    """How many micro-batches make a step: as few as leave none of them larger than ``micro_batch_size``.

    Raises: UserError if there are fewer pictures than processes.
    """
    if batch_size < processes:
        raise UserError(
            f"batch_size={batch_size} is the global batch and must be at least 1 picture for each of the {processes} "
            "processes: give more, or train on fewer devices"
        )
    local = -(-batch_size // processes)
    return 1 if micro_batch_size is None else -(-local // micro_batch_size)


def accumulate(trainer: lightning.Trainer, count: int) -> None:
    """Have a step made of ``count`` micro-batches; validation stays where it was, in steps."""
    if trainer.val_check_interval is not None:  # Lightning counts micro-batches, this project steps
        trainer.val_check_interval = int(trainer.val_check_interval) // trainer.accumulate_grad_batches * count
    trainer.accumulate_grad_batches = count


class Recount(lightning.Callback):
    """Makes Lightning's count of micro-batches that of the steps done, where a run goes on with other micro-batches.

    Where a step ends and a validation is due are by this count.
    """

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        more = trainer.global_step * trainer.accumulate_grad_batches - progress.total.ready
        for counts in (progress.total, progress.current):
            for name in ("ready", "started", "processed", "completed"):
                setattr(counts, name, getattr(counts, name) + more)


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to ``most`` that fits, 0 if none does: powers of two, then halves between two of them."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)  # does not fit, or is not wanted
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


class Trial:
    """Whether a micro-batch of so many made-up pictures fits in the memory: forward and backward, twice, are done.

    The optimizers' states are there while it is tried, as they will be; no weight changes. ``make`` makes the batch.
    """

    def __init__(self, trainer: lightning.Trainer, module: DiffusionModule, make: Callable[[int], Batch]) -> None:
        self._trainer, self._module, self._make = trainer, module, make

    def __enter__(self) -> "Trial":
        for optimizer in self._trainer.strategy.optimizers:
            make_state(optimizer)
        return self

    def __exit__(self, *error: object) -> None:
        for optimizer in self._trainer.strategy.optimizers:
            optimizer.state.clear()

    def __call__(self, count: int) -> bool:
        try:
            for _ in range(2):  # the second time gradients are there already, as they are when they accumulate
                self._pass(count)
        except torch.OutOfMemoryError:
            return False
        finally:
            self._module.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()  # does nothing where there is no GPU
        return True

    def _pass(self, count: int) -> None:
        module = self._module
        batch = self._make(count).to(module.device)
        with self._trainer.precision_plugin.forward_context():
            loss = module.loss(module.denoiser, batch, module.address(batch, 0, module.seed), training=True)
        loss.per_example.mean().backward()


def make_state(optimizer: Optimizer) -> None:
    """Have an optimizer make its state: a step that changes nothing, since gradients and learning rate are zero."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in cast(list[Tensor], group["params"]):
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


class FindMicroBatch(lightning.Callback):
    """Before training measures the largest micro-batch that every process's GPU holds, and sets accumulation by it."""

    def __init__(self, batch_size: int, make: Callable[[int], Batch]) -> None:
        self._batch_size, self._make = batch_size, make

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Raises: UserError without a GPU, where parameters are sharded, or if not even one picture fits."""
        assert isinstance(pl_module, DiffusionModule)
        check_measurable(trainer)
        device = trainer.strategy.root_device
        torch.cuda.set_per_process_memory_fraction(ROOM, device)
        try:
            self.find(trainer, pl_module)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
            torch.compiler.reset()  # else training keeps kernels for batches of any size

    def find(self, trainer: lightning.Trainer, module: DiffusionModule) -> None:
        """Measure on this process's device, and have all processes take the least of what they found."""
        most = -(-self._batch_size // trainer.world_size)
        with Trial(trainer, module, self._make) as fits:
            found = torch.tensor(largest(fits, most), device=module.device)
        least: Any = trainer.strategy.reduce(found, reduce_op="min")
        micro = int(least)
        if not micro:
            raise UserError(
                "find_batch_size=true found that not even one picture fits in the memory: set recompute=selective or "
                "recompute=full, trainer=fsdp2, or a smaller network"
            )
        accumulate(trainer, accumulation(self._batch_size, micro, trainer.world_size))
        if trainer.is_global_zero:
            print(f"the largest micro-batch that fits is {micro}: set micro_batch_size={micro} to measure no more")


def check_measurable(trainer: lightning.Trainer) -> None:
    """Raises: UserError where a trial tells nothing, or would end in processes that wait for one another."""
    if trainer.strategy.root_device.type != "cuda":
        raise UserError(
            "find_batch_size=true measures the memory of a GPU, and this training has none: set micro_batch_size"
        )
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise UserError(
            "find_batch_size=true does not go with trainer=fsdp2, where a process that is out of memory would leave "
            "the others waiting for its share: set micro_batch_size"
        )
