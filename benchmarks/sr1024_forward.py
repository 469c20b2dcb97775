"""One forward pass of the paper's 256 to 1024 network at full size: memory above its weights, and seconds.

    python benchmarks/sr1024_forward.py --threads 1

Takes 3 GB of memory and half a minute of one core. Weights are random and in float32, work is in bfloat16 by autocast,
as sampling does it; the text is 128 tokens of width 4096.
"""

import json
import statistics
import time
from typing import Any

import torch
from common import parser_of, prepare, record, rounded, synchronize

from imagen import build
from imagen.cli import compose, one_sentence
from imagen.devices import peak_memory
from imagen.types import Conditioning, TextEmbedding

OVERRIDES = ["data=synthetic", "text_encoder=t5_xxl", "network=efficient_unet_sr1024"]


def measure(device: torch.device, rounds: int) -> dict[str, Any]:
    """Build the network for real and run it; sizes in MiB, the median round's seconds."""
    cfg = compose("train", OVERRIDES)
    network: Any = build.build_network(cfg).eval().requires_grad_(False)
    torch.nn.init.normal_(network.conv_out.weight, std=0.01)  # starts as zero: the output should tell
    network.to(device, memory_format=torch.channels_last)  # as stages are rebuilt
    text = TextEmbedding(torch.randn(1, 128, cfg.text_encoder.width), torch.ones(1, 128, dtype=torch.bool)).to(device)
    cond = Conditioning(text, torch.randn(1, 3, 256, 256, device=device), torch.zeros(1, device=device))
    x_t = torch.randn(1, 3, 1024, 1024, device=device)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    took = []
    for _ in range(rounds):
        synchronize(device)
        start, cpu_start = time.perf_counter(), time.process_time()
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            out = network(x_t, torch.zeros(1, device=device), cond)
        synchronize(device)
        took.append((time.perf_counter() - start, time.process_time() - cpu_start))
        assert out.shape == (1, 3, 1024, 1024)
        assert out.isfinite().all()
    seconds, cpu_seconds = zip(*took, strict=True)
    peak = peak_memory(device)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights_mib": weights // 2**20,
        "memory_mib": peak // 2**20,
        "memory_above_weights_mib": (peak - weights) // 2**20,
        "seconds": rounded(statistics.median(seconds)),
        "seconds_low": rounded(min(seconds)),
        "seconds_high": rounded(max(seconds)),
        "cpu_seconds": rounded(statistics.median(cpu_seconds)),
        "rounds": rounds,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.set_defaults(rounds=1)
    options = parser.parse_args()
    device = prepare(options)
    figures = measure(device, options.rounds)
    path = record("sr1024_forward", "efficient_unet_sr1024", figures, device, options.results)
    print(f"{json.dumps(figures, indent=2)}\nwritten to {path}")


if __name__ == "__main__":
    with one_sentence("train"):
        main()
