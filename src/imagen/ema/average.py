"""What an average of the trained parameters is; none at all, and the exponential moving average."""

import math
from abc import ABC, abstractmethod
from copy import deepcopy

import torch
from torch import nn

from imagen.ranges import Count
from imagen.sharded import own_parts


class EMA(nn.Module, ABC):
    """Holds the averaged network; ``update`` moves it towards the trained one after each optimizer step.

    It is a module, so that it travels with devices and checkpoints like any other state. Where the trained network is
    sharded its averages must be sharded alike: each process then averages its own part.
    """

    network: nn.Module

    def networks(self) -> list[nn.Module]:
        """The networks that it holds itself, beside the trained one."""
        return [self.network]

    @abstractmethod
    def update(self, network: nn.Module, step: int) -> None:
        """Take in ``network`` as it is after optimizer step number ``step`` (the first step is 1)."""


class NoEMA(EMA):
    """No average: the trained network itself stands in for it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # held in a list so that the parameters are not registered, saved and counted twice
        self._network = [network]

    @property
    def network(self) -> nn.Module:  # type: ignore[override]
        return self._network[0]

    def networks(self) -> list[nn.Module]:
        return []

    def update(self, network: nn.Module, step: int) -> None: ...


class ExponentialEMA(EMA):
    """``average += (1 - d) (parameter - average)`` with ``d = min(decay, (1 + step) / (warmup + step))``.

    The warm-up keeps the random initial weights out of a short run's average; ``warmup=1`` means none. The paper does
    not mention an EMA; 0.9999 is DDPM's (arXiv 2006.11239, appendix B).

    With ``every_n_steps`` above 1 the average moves that much less often, by the product of the steps' decays: cheaper,
    and not the same average, since it never sees the parameters in between.
    """

    def __init__(self, network: nn.Module, *, decay: float, warmup: float, every_n_steps: Count) -> None:
        super().__init__()
        self.network = deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.warmup = warmup
        self.every_n_steps = every_n_steps

    def update(self, network: nn.Module, step: int) -> None:
        if step % self.every_n_steps == 0:
            move(self.network, network, 1 - math.prod(map(self._decay, range(step - self.every_n_steps + 1, step + 1))))

    def _decay(self, step: int) -> float:
        return min(self.decay, (1 + step) / (self.warmup + step))


@torch.no_grad()
def move(average: nn.Module, network: nn.Module, weight: float) -> None:
    """``average += weight (network - average)``, parameter by parameter."""
    torch._foreach_lerp_(own_parts(average.parameters()), own_parts(network.parameters()), weight)  # pyright: ignore
