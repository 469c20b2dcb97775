"""What one training picture takes of a network, counted on the meta device."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from imagen import build
from imagen.activations import Activations, width_of
from imagen.summary import example, summarize


@dataclass(frozen=True)
class Counts:
    """Of one stage: numbers of parameters, bytes of states, and floating-point operations and bytes of a picture.

    - ``forward_flops``, ``step_flops``: forward alone, and forward and backward; convolutions, matrix products and
      attention, a multiply-add as two.
    - ``kept_bytes``: what is kept for the backward pass by each option of ``conf/recompute``, with what one layer at a
      time makes anew.
    - ``repeated_bytes``: what ``recompute=selective`` reads and writes once more, each operation by itself.
    - ``block_parameters``: of the largest block; ``root_parameters``: of all that is in none.
    """

    parameters: int
    block_parameters: int
    root_parameters: int
    optimizer_bytes: int
    ema_bytes: int
    forward_flops: int
    step_flops: int
    kept_bytes: Mapping[str, int]
    repeated_bytes: int


def count(cfg: DictConfig) -> Counts:
    """The counts of a training run's config: of a picture, or of the crop that it trains on."""
    summary = summarize(cfg)
    with torch.device("meta"):
        network = build.build_network(cfg)
        inputs = example(cfg, cfg.data.get("crop") or cfg.resolution)
    with FlopCounterMode(display=False) as forward:
        network(*inputs)
    memory = Activations(network)
    with memory:
        network(*inputs)
    of_blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in memory.blocks]
    width = width_of(cfg)
    return Counts(
        parameters=summary["parameters"],
        block_parameters=max(of_blocks),
        root_parameters=summary["parameters"] - sum(of_blocks),
        optimizer_bytes=summary["optimizer_bytes"],
        ema_bytes=summary["ema_bytes"],
        forward_flops=forward.get_total_flops(),
        step_flops=summary["training_flops"],
        kept_bytes={option: size // width for option, size in memory.kept_bytes().items()},
        repeated_bytes=memory.repeated_bytes // width,
    )
