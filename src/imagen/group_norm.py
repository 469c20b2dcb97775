"""What computes a network's GroupNorms with scale, shift and SiLU: equal up to rounding, at different speeds."""

import logging
from abc import ABC, abstractmethod

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
    """Triton kernels on GPUs; as ``TorchGroupNorm`` on other devices, and where Triton is missing or an older one."""

    def apply(self, network: nn.Module) -> None:
        try:
            from imagen.network.triton_norm.operation import triton_group_norm
        except ImportError as error:
            log.warning(
                "group_norm=triton: Triton is not installed here or too old (%s), so norms are computed by PyTorch",
                error,
            )
            return
        for module in network.modules():
            if isinstance(module, GroupNorm):
                module.kernel = triton_group_norm
