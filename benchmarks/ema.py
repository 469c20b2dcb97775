"""The moving average's share of a training step, which is to be at most 2 %.

    python benchmarks/ema.py --presets demo_base16 imagen_base64_300m --batch-size 4

Both are timed in the same steps. The average costs the same whatever the batch, so its share falls as the batch grows:
the batch size belongs to the figure.
"""

import statistics
import time
from argparse import Namespace
from typing import Any

import torch
from common import at_least, rounded, synchronize
from omegaconf import DictConfig
from presets import parser_of_presets, run
from step import TrainingStep, batch_size_of, least_cost

from imagen.cli import one_sentence


def measure(cfg: DictConfig, options: Namespace, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a step and of its average, and the median share of the rounds."""
    batch_size = batch_size_of(cfg, options.batch_size, device)
    step = TrainingStep(cfg, batch_size, device, compiled=options.compile)
    step()
    whole, average = [], []
    for _ in range(options.rounds):
        times = [_now(device)]
        for part in (step.gradients, step.update, step.average):
            part()
            times.append(_now(device))
        whole.append(times[-1] - times[0])
        average.append(times[-1] - times[-2])
    shares = [a / w for a, w in zip(average, whole, strict=True)]
    return {
        "batch_size": batch_size,
        "parameters": sum(p.numel() for p in step.network.parameters()),
        "step_ms": rounded(1000 * statistics.median(whole)),
        "ema_ms": rounded(1000 * statistics.median(average)),
        "share": rounded(statistics.median(shares)),
        "share_low": rounded(min(shares)),
        "share_high": rounded(max(shares)),
        "rounds": options.rounds,
    }


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()


def main() -> None:
    parser = parser_of_presets(__doc__)
    batch = "pictures; else the preset's own, or 1 on a CPU and 32 on a GPU"
    parser.add_argument("--batch-size", type=at_least(1), help=batch)
    run("ema", __file__, parser.parse_args(), measure, least_cost)


if __name__ == "__main__":
    with one_sentence("train"):
        main()
