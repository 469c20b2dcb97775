"""What the processes of a training tell one another after each step, without making any of them wait for its device."""

import torch
from lightning import Trainer
from torch import Tensor


class Later:
    """Numbers that a device computes, read by the host one step later, when they have long been there."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, torch.cuda.Event | None] | None = None

    def swap(self, numbers: Tensor | None) -> list[float] | None:
        """Hand in the numbers of this step (None: no more come) for those handed in before, if any were."""
        last, self._last = self._last, None if numbers is None else self._sent(numbers.detach())
        if last is None:
            return None
        host, arrived = last
        if arrived is not None:
            arrived.synchronize()
        return host.tolist()

    def _sent(self, numbers: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        if not numbers.is_cuda:
            return numbers.clone(), None
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return host, arrived


class Agreement:
    """The largest of what all processes wish, known to all after the same step.

    A single process knows at once. Of several, each learns after the next step what was wished after this one.
    """

    def __init__(self) -> None:
        self._later = Later()

    def largest(self, trainer: Trainer, wishes: list[int]) -> list[int]:
        """All processes call it after every step, each with as many wishes, 0 or more each."""
        if trainer.world_size == 1:
            return wishes
        device = trainer.strategy.root_device
        numbers = torch.tensor([float(wish) for wish in wishes], pin_memory=device.type == "cuda").to(
            device, non_blocking=True
        )
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
        last = self._later.swap(numbers)
        return [0] * len(wishes) if last is None else [int(number) for number in last]
