"""What computes a network's GroupNorms with scale, shift and SiLU: equal up to rounding, at different speeds."""

import logging
from abc import ABC, abstractmethod
from importlib.util import find_spec

from torch import nn

from imagen.network.blocks import GroupNorm

log = logging.getLogger(__name__)


class GroupNormChoice(ABC):
    """Changes how norms are computed, and neither what they mean nor the names of their weights."""

    @abstractmethod
    def apply(self, network: nn.Module) -> None:
        """Make it so for every ``GroupNorm`` of ``network``."""


class TorchGroupNorm(GroupNormChoice):
    """PyTorch's operations, which torch.compile fuses; on CPUs one function of ours (``imagen.network.kernels``)."""

    def apply(self, network: nn.Module) -> None: ...


class TritonGroupNorm(GroupNormChoice):
    """Triton kernels on GPUs; as ``TorchGroupNorm`` on other devices, and everywhere where Triton is not installed."""

    def apply(self, network: nn.Module) -> None:
        if find_spec("triton") is None:
            log.warning("group_norm=triton: Triton is not installed here, so norms are computed by PyTorch")
            return
        from imagen.network.triton_norm.operation import triton_group_norm

        for module in network.modules():
            if isinstance(module, GroupNorm):
                module.kernel = triton_group_norm
