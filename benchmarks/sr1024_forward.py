"""One forward pass of the paper's 256 to 1024 network at full size: memory above its weights, and seconds.

python benchmarks/sr1024_forward.py [threads]: prints JSON. Takes 3 GB of memory and half a minute of one core.
Weights are random and in float32, work is in bfloat16 by autocast, as sampling does it; the text is 128 tokens of
width 4096. Peaks are of the process's resident memory, so Linux alone is supported.
"""

import json
import resource
import sys
import time
from typing import Any

import torch

from imagen import build
from imagen.cli import compose
from imagen.types import Conditioning, TextEmbedding

OVERRIDES = ["data=synthetic", "text_encoder=t5_xxl", "network=efficient_unet_sr1024"]


def resident_mb() -> float:
    """Resident memory now."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def peak_mb() -> float:
    """The highest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure() -> dict[str, float | int]:
    """Build the network for real and run it once; sizes in MiB, the peak above what its weights take."""
    cfg = compose("train", OVERRIDES)
    network: Any = build.build_network(cfg).eval().requires_grad_(False)
    torch.nn.init.normal_(network.conv_out.weight, std=0.01)  # starts as zero: the output should tell
    network.to(memory_format=torch.channels_last)  # as stages are rebuilt
    text = TextEmbedding(torch.randn(1, 128, cfg.text_encoder.width), torch.ones(1, 128, dtype=torch.bool))
    cond = Conditioning(text, torch.randn(1, 3, 256, 256), torch.zeros(1))
    x_t = torch.randn(1, 3, 1024, 1024)
    weights = sum(p.numel() * p.element_size() for p in network.parameters()) / 2**20
    before, start, cpu_start = resident_mb(), time.perf_counter(), time.process_time()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        out = network(x_t, torch.zeros(1), cond)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    assert out.shape == (1, 3, 1024, 1024)
    assert out.isfinite().all()
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights_mb": round(weights),
        "resident_before_mb": round(before),
        "peak_mb": round(peak_mb()),
        "peak_above_weights_mb": round(peak_mb() - weights),
        "peak_above_resident_before_mb": round(peak_mb() - before),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    torch.manual_seed(0)
    print(json.dumps(measure(), indent=2))
