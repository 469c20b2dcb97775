"""What a training step costs: pictures a second, utilisation, peak memory, milliseconds by kind of operation.

    python benchmarks/train_step.py --presets demo_base16 imagen_sr256 --batch-size 1

The step is the real one (loss, backward, clipping, optimizer, average) on random pictures that lie on the device. Each
preset runs in a process of its own. Utilisation counts convolutions, matrix products and attention alone, against a
GPU's dense bf16 peak, or the rate of bare 3x3 convolutions on this CPU. What cannot run here is recorded with why.
"""

from argparse import Namespace
from typing import Any

import torch
from common import at_least, rounded, timed
from kinds import milliseconds_by_kind
from omegaconf import DictConfig
from presets import parser_of_presets, run
from step import TrainingStep, batch_size_of, least_cost

from imagen.cli import one_sentence
from imagen.devices import peak_memory
from imagen.summary import summarize


def measure(cfg: DictConfig, options: Namespace, device: torch.device) -> dict[str, Any]:
    """The figures of one preset; the peak is read before the profiler adds to it."""
    batch_size = batch_size_of(cfg, options.batch_size, device)
    step = TrainingStep(cfg, batch_size, device, compiled=options.compile)
    took = timed(step, device, options.rounds)
    memory = peak_memory(device)
    figures = {
        "batch_size": batch_size,
        "precision": cfg.trainer.precision,
        "images_per_s": rounded(batch_size / took.median),
        **took.figures(),
        "tflops_per_s": rounded(summarize(cfg)["training_flops"] * batch_size / took.median / 1e12),
        "memory_mib": memory // 2**20,
        "ms_by_kind": milliseconds_by_kind(step, device),
    }
    if options.graph_breaks:
        figures["graph_breaks"] = graph_breaks(step)
    return figures


def graph_breaks(step: TrainingStep) -> int:
    """Where torch.compile would break the network's graph in two; traced, not compiled."""
    seen: list[tuple[Any, ...]] = []
    hook = step.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    step.gradients()
    hook.remove()
    torch._dynamo.reset()
    return torch._dynamo.explain(step.network)(*seen[0]).graph_break_count


def main() -> None:
    parser = parser_of_presets(__doc__)
    batch = "pictures; else the preset's own, or 1 on a CPU and 32 on a GPU"
    parser.add_argument("--batch-size", type=at_least(1), help=batch)
    parser.add_argument("--graph-breaks", action="store_true", help="count them too")
    run("train_step", __file__, parser.parse_args(), measure, least_cost)


if __name__ == "__main__":
    with one_sentence("train"):
        main()
