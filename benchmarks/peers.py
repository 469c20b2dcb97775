"""This project's networks beside its peers': imagen-pytorch, diffusers' U-Net with DeepFloyd IF's settings, MinImagen.

    make .venv-peers/.done                  # once: the peers' own environment
    python benchmarks/peers.py --sizes sr256 --peers imagen_pytorch --rounds 3 --threads 2

Each is given the same block table, batch and bf16 autocast, as its users run it, and stands in a process of its own
environment. This project and one peer take turns: a training step (forward and backward of a mean square), a sampling
step (one forward pass), then training steps at twice the batch, for the memory that one more picture takes. Operations
are convolutions, matrix products and attention of each network's own forward pass, by torch's counter; a training step
counts as three of those. Ratios above 1 say that this project does more a second.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import at_least, one_of, parser_of, prepare, record, rounded

from imagen.cli import one_sentence

HERE = Path(__file__).parent
PEERS_PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"
PEERS = ("imagen_pytorch", "diffusers", "minimagen")

SR = {"resolution": 256, "low_resolution": 64, "num_res_blocks": [2, 4, 8, 8], "attention": [False] * 3 + [True]}
BASE = {"resolution": 64, "low_resolution": None, "num_res_blocks": [3] * 4, "attention": [False] + [True] * 3}


def _sr(width: int) -> dict[str, Any]:
    channels = [width * mult for mult in (1, 2, 4, 8)]
    return {**SR, "channels": channels, "overrides": ["experiment=imagen_sr256", f"network.channels={channels}"]}


def _base(width: int) -> dict[str, Any]:
    channels = [width * mult for mult in (1, 2, 3, 4)]
    return {**BASE, "channels": channels, "overrides": ["experiment=imagen_base64", f"network.width={width}"]}


SIZES = {
    "sr256": _sr(128),
    "sr256_narrow": _sr(32),
    "base64_2b": _base(512),
    "base64_500m": _base(256),
    "base64_300m": _base(192),
    "base64_narrow": _base(64),
}
"""The paper's block tables; narrow ones to try the benchmark with. ``overrides`` are this project's alone."""

TEXT = {"text_width": 4096, "text_length": 128}
"""T5-XXL's width and the paper's length."""


class Worker:
    """A peer's process; ``hello`` is what it says of its network."""

    def __init__(self, peer: str, table: dict[str, Any], options: argparse.Namespace):
        python = sys.executable if peer == "imagen" else str(options.python)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PEERS_DEVICE": options.device}
        if options.threads:
            environment["OMP_NUM_THREADS"] = str(options.threads)
        self.process = subprocess.Popen(
            [python, str(HERE / "peers_worker.py"), peer, json.dumps({**table, **TEXT})],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment},
        )
        self.peer = peer
        self.hello = self._answer()

    def step(self, kind: str, batch: int) -> dict[str, float]:
        """Seconds and peak bytes of one ``train`` or ``sample`` step."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"step": kind, "batch": batch}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            with self.process:
                pass  # closes its pipes and waits
            raise RuntimeError(f"{self.peer} ended with status {self.process.returncode}; its own words are above")
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:  # which closes its pipes and waits
            self.process.kill()


def compare(peer: str, table: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """This project and ``peer`` by turns; figures of each, and their ratios with the least and most of any round."""
    with Worker("imagen", table, options) as ours, Worker(peer, table, options) as theirs:
        figures: dict[str, Any] = {}
        batch, workers = options.batch_size, {"imagen": ours, peer: theirs}
        took = {kind: {name: [] for name in workers} for kind in ("train", "sample", "memory")}
        for name, worker in workers.items():
            figures[name] = worker.hello
            worker.step("train", batch)  # the first step of a process is slower
        for _ in range(options.rounds):
            for name, worker in workers.items():
                for kind in ("train", "sample"):
                    took[kind][name].append(worker.step(kind, batch)["seconds"])
        for name, worker in workers.items():
            peaks = [worker.step("train", n)["peak_bytes"] for n in (batch, 2 * batch)]
            took["memory"][name].append((peaks[1] - peaks[0]) / batch)
            figures[name] |= {"train_peak_mib": round(peaks[0] / 2**20), "sample_seconds": took["sample"][name]}
            figures[name] |= {"mib_per_picture": round(took["memory"][name][0] / 2**20)}
            figures[name] |= {"train_seconds": took["train"][name]}
    work = ours.hello["forward_flops"] / theirs.hello["forward_flops"]
    images = _ratios(took["train"][peer], took["train"]["imagen"])
    samples = _ratios(took["sample"][peer], took["sample"]["imagen"])
    ratios = {
        "train_images_per_s": _spread(images),
        "train_flops_per_s": _spread([ratio * work for ratio in images]),
        "sample_images_per_s": _spread(samples),
        "sample_flops_per_s": _spread([ratio * work for ratio in samples]),
        "memory_per_picture": rounded(_ratios(took["memory"]["imagen"], took["memory"][peer])[0]),
    }
    return {"batch_size": batch, "precision": "bf16 autocast", "ratios": ratios, **figures}


def _ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": rounded(statistics.median(values)), "low": rounded(min(values)), "high": rounded(max(values))}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), type=one_of(PEERS), help=", ".join(PEERS))
    parser.add_argument(
        "--sizes", nargs="+", default=["sr256", "base64_300m"], type=one_of(SIZES), help=", ".join(SIZES)
    )
    parser.add_argument("--batch-size", type=at_least(1), default=1, help="pictures a step")
    parser.add_argument("--python", type=Path, default=PEERS_PYTHON, help="of the peers' environment")
    options = parser.parse_args()
    if not options.python.exists():
        parser.error(f"{options.python} is missing: make .venv-peers/.done makes the peers' environment")
    device = prepare(options)
    options.device = device.type
    for size in options.sizes:
        for peer in options.peers:
            figures = compare(peer, SIZES[size], options)
            path = record("peers", f"{size} {peer}", figures, device, options.results)
            print(f"{size} {peer}: {json.dumps(figures['ratios'])}", flush=True)
            print(f"written to {path}", flush=True)


if __name__ == "__main__":
    with one_sentence("train"):
        main()
