"""How one training is spread over processes: a copy of the network in each, or its parameters divided among them."""

from imagen.strategy.ddp import DDP
from imagen.strategy.fsdp2 import FSDP2

__all__ = ["DDP", "FSDP2"]
