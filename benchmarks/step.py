"""A preset's training step, on random pictures that lie on the device already."""

from argparse import Namespace
from contextlib import nullcontext
from typing import Any

import torch
from omegaconf import DictConfig
from presets import text_of
from torch import nn
from torch.profiler import record_function

from imagen import build
from imagen.randomness import TrainingAddress
from imagen.summary import summarize
from imagen.types import Batch

LARGEST_OWN_BATCH = 64
"""A preset's batch size up to this is that of one device; the paper's 2048 is spread over many."""


def batch_size_of(cfg: DictConfig, given: int | None, device: torch.device) -> int:
    """Pictures a step on one device: what was given, the preset's own, or 1 on a CPU and 32 on a GPU."""
    if given:
        return given
    return cfg.batch_size if cfg.batch_size <= LARGEST_OWN_BATCH else (32 if device.type == "cuda" else 1)


def least_cost(cfg: DictConfig, options: Namespace, device: torch.device) -> tuple[float, float]:
    """Operations of a step, and bytes of float32 weights and gradients, states and what is kept for the backward."""
    counts, batch_size = summarize(cfg), batch_size_of(cfg, options.batch_size, device)
    states = 8 * counts["parameters"] + counts["ema_bytes"] + counts["optimizer_bytes"]
    return counts["training_flops"] * batch_size, states + counts["activation_bytes"] * batch_size


class TrainingStep:
    """One call is one training step: loss, backward, clipping, optimizer, schedule, average; nothing is logged.

    ``compiled`` compiles the network as ``compile=true`` does.
    """

    def __init__(self, cfg: DictConfig, batch_size: int, device: torch.device, *, compiled: bool = False) -> None:
        self.cfg, self.device, self.count = cfg, device, 0
        self.module = build.build_module(cfg).to(device)
        configured: Any = self.module.configure_optimizers()
        self.optimizer, self.scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        self.batch = random_batch(cfg, batch_size, device)
        self.network: nn.Module = self.module.denoiser.network
        if compiled:
            self.network.compile(fullgraph=True)

    def __call__(self) -> None:
        self.gradients()
        self.update()
        self.average()

    def gradients(self) -> None:
        """Loss and backward."""
        bf16 = str(self.cfg.trainer.precision).startswith("bf16")
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext():
            size = len(self.batch)
            address = TrainingAddress(self.cfg.seed, self.count, 0, size, size, self.device)
            loss = self.module.loss(self.module.denoiser, self.batch, address, training=True).per_example.mean()
        loss.backward()

    def update(self) -> None:
        """Clipping, optimizer, schedule."""
        with record_function("clip"):
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.cfg.trainer.gradient_clip_val)
        with record_function("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
        self.count += 1

    def average(self) -> None:
        """The moving average."""
        with record_function("EMA"):
            self.module.ema.update(self.network, self.count)


def random_batch(cfg: DictConfig, size: int, device: torch.device) -> Batch:
    """Random pixels (of the crop where one is trained on) and tokens."""
    side = cfg.data.get("crop") or cfg.resolution
    return Batch(
        torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8),
        text_of(cfg, size),
        torch.ones(size, dtype=torch.bool),
        [str(i) for i in range(size)],
        [""] * size,
    ).to(device)
