"""What the benchmarks share: the device and its ceiling, the clock, memory's peak, and the files of results.

A file of ``benchmarks/results/`` belongs to one model of GPU or CPU: ``{"device", "kind", "benchmarks"}``, the last by
benchmark and case. An entry holds when, with which torch and how many threads it was measured, and its figures.
"""

import argparse
import datetime
import fcntl
import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F

from imagen.cli import among
from imagen.devices import device_name, peak_flops
from imagen.files import write_json

RESULTS = Path(__file__).parent / "results"


def ceiling(device: torch.device) -> float | None:
    """FLOP/s that utilisation is a share of: a GPU's dense bf16 peak, a CPU's own rate at bare 3x3 convolutions."""
    return peak_flops(device_name(device)) if device.type == "cuda" else convolution_rate(device)


@torch.inference_mode()
def convolution_rate(device: torch.device, channels: int = 256, side: int = 32, batch: int = 16) -> float:
    """The most FLOP/s that bare 3x3 convolutions reach: bf16, channels_last, forward, the best of ten."""
    x = torch.randn(batch, channels, side, side, dtype=torch.bfloat16, device=device)
    weight = torch.randn(channels, channels, 3, 3, dtype=torch.bfloat16, device=device)
    x, weight = (a.to(memory_format=torch.channels_last) for a in (x, weight))
    took = timed(lambda: F.conv2d(x, weight, padding=1), device, rounds=10)
    return 2 * 9 * channels**2 * side**2 * batch / took.low


@dataclass(frozen=True)
class Timing:
    """Seconds of each round."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        return min(self.seconds)

    @property
    def high(self) -> float:
        return max(self.seconds)

    def figures(self) -> dict[str, Any]:
        """As results hold it: the median, the least, the most, in milliseconds, and how many rounds."""
        ms = {name: rounded(1000 * getattr(self, name)) for name in ("median", "low", "high")}
        return {"ms": ms["median"], "ms_low": ms["low"], "ms_high": ms["high"], "rounds": len(self.seconds)}


def timed(call: Callable[[], Any], device: torch.device, rounds: int, warmup: int = 1) -> Timing:
    """``call`` by the wall clock, each round to the end of the device's work, after ``warmup`` calls not counted."""
    for _ in range(warmup):
        call()
    seconds = []
    for _ in range(rounds):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return Timing(seconds)


def synchronize(device: torch.device) -> None:
    """Wait for the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> int | None:
    """Bytes to be had on the device now; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        said = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(said.group(1)) if said else None


def rounded(value: float) -> float:
    """To four digits, which is more than the clock is good for."""
    return float(f"{value:.4g}")


def result_path(device: torch.device, folder: Path) -> Path:
    """The file of the device's model."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', device_name(device).lower()).strip('-')}.json"


def record(benchmark: str, case: str, figures: dict[str, Any], device: torch.device, folder: Path) -> Path:
    """Put one entry into the device's file, in place of an older one of that benchmark and case; return the file.

    Two processes that write at once both get their entries in, and the file is whole at any moment.
    """
    path = result_path(device, folder)
    folder.mkdir(parents=True, exist_ok=True)
    entry = {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **figures,
    }
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        benchmarks = content.get("benchmarks", {})
        benchmarks[benchmark] = dict(sorted({**benchmarks.get(benchmark, {}), case: entry}.items()))
        named = {"device": device_name(device), "kind": device.type}
        write_json(path, {**named, "benchmarks": dict(sorted(benchmarks.items()))})
    return path


class Parser(argparse.ArgumentParser):
    """Shows a script's docstring for ``--help``; a mistake is answered with one sentence and the nearest option."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        if unknown := message.partition("unrecognized arguments: ")[2]:
            there_are = [word for word in self._option_string_actions if word.startswith("--")]
            name = unknown.split()[0]
            message = f"{name} is not an option: {among(name, there_are)}"
        self.exit(2, f"error: {message}\n")


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """An option's ``type``: one of the names, or a sentence with the nearest."""

    def check(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(f"{name} is not known: {among(name, list(names))}")
        return name

    return check


def at_least(least: int) -> Callable[[str], int]:
    """An option's ``type``: a whole number from ``least`` on."""

    def check(word: str) -> int:
        if not word.lstrip("-").isdigit() or int(word) < least:
            raise argparse.ArgumentTypeError(f"{word} must be a whole number of at least {least}")
        return int(word)

    return check


def parser_of(description: str | None) -> Parser:
    """A command line with what every benchmark takes: device, threads, rounds, where results go."""
    parser = Parser(description)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=at_least(1), help="of the CPU; torch's own choice if not given")
    parser.add_argument(
        "--rounds", type=at_least(1), default=5, help="how often each thing is timed; the median counts"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    return parser


def prepare(options: argparse.Namespace) -> torch.device:
    """Set threads and precision as training does, and name the device."""
    from imagen.devices import pick_device

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    return pick_device(options.device)


def in_a_process(script: str, arguments: Iterable[str]) -> dict[str, Any]:
    """What ``script`` prints as JSON on its last line, run in a process of its own, so that memory's peak is its own.

    ``{"not_run": why}`` if it failed: one case that is too large does not end the rest.
    """
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        last = (done.stderr.strip().splitlines() or [""])[-1][:200]
        return {"not_run": f"ended with status {done.returncode}: {last or shlex.join(command)}"}
    return json.loads(done.stdout.strip().splitlines()[-1])
