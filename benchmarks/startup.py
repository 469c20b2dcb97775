"""How long one waits: for imports, for --help, for the first training step, for torch.compile.

    python benchmarks/startup.py

Every round is a process of its own. The first step is that of ``train.py experiment=toy``, from the shell to its line
in metrics.jsonl. ``--compile PRESET`` adds how much longer the first step of a preset takes when it is compiled.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Timing, in_a_process, one_of, parser_of, prepare, record, rounded, timed
from presets import config_of

from imagen.cli import one_sentence

ROOT = Path(__file__).resolve().parents[1]


def command(*arguments: str) -> Callable[[], float]:
    """A Python command, run to its end: its seconds."""

    def call() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    return call


def first_step(*overrides: str) -> Callable[[], float]:
    """Training started, and stopped again at its first step: the seconds until then."""

    def call() -> float:
        with tempfile.TemporaryDirectory() as folder:
            settings = ["max_steps=1", "trainer.log_every_n_steps=1", "callback=[]", f"output_dir={folder}", *overrides]
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "train.py", *settings], cwd=ROOT, stdout=subprocess.DEVNULL, env=dict(os.environ)
            )
            seconds = None
            while seconds is None and process.poll() is None:
                if any(path.stat().st_size for path in Path(folder).rglob("metrics.jsonl")):
                    seconds = time.perf_counter() - began
                time.sleep(0.005)
            if process.wait() or seconds is None:
                raise RuntimeError(f"train.py ended with status {process.returncode} before its first step")
            return seconds

    return call


WAITS = {
    "import imagen": command("-c", "import imagen"),
    "import imagen.build": command("-c", "import imagen.build"),
    "import imagen.training": command("-c", "import imagen.training"),
    "train.py --help": command("train.py", "--help"),
    "the first step of the toy": first_step("experiment=toy"),
}
"""What is waited for: seconds by a call."""


def processor_seconds() -> float:
    """What the processes so far took of the processor: the same however busy the machine is with other things."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compile_time(preset: str, device: torch.device) -> dict[str, Any]:
    """The first step's seconds, compiled and not, and the median of later ones."""
    from step import TrainingStep, batch_size_of

    cfg, figures = config_of(preset, []), {}
    for name, compiled in (("eager", False), ("compiled", True)):
        step = TrainingStep(cfg, batch_size_of(cfg, None, device), device, compiled=compiled)
        figures[f"{name}_first_s"] = rounded(timed(step, device, rounds=1, warmup=0).median)
        figures[f"{name}_ms"] = timed(step, device, rounds=5).figures()["ms"]
    return {**figures, "compile_s": rounded(figures["compiled_first_s"] - figures["eager_first_s"])}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--waits", nargs="*", default=list(WAITS), type=one_of(WAITS), metavar="WAIT", help=", ".join(WAITS)
    )
    parser.add_argument("--compile", nargs="*", default=[], metavar="PRESET", help="measure its compilation too")
    parser.add_argument("--here", help="measure the compilation of one preset in this process and print JSON")
    options: Namespace = parser.parse_args()
    for preset in options.compile:
        config_of(preset, [])  # a mistyped one is told before anything is measured
    device = prepare(options)
    if options.here:
        print(json.dumps(compile_time(options.here, device)))
        return
    for wait in options.waits:
        before = processor_seconds()
        took = Timing([WAITS[wait]() for _ in range(options.rounds)])
        figures: dict[str, Any] = {"s": rounded(took.median), "s_low": rounded(took.low), "s_high": rounded(took.high)}
        figures["cpu_s"] = rounded((processor_seconds() - before) / options.rounds)
        record("startup", wait, {**figures, "rounds": options.rounds}, device, options.results)
        print(f"{wait}: {json.dumps(figures)}", flush=True)
    for preset in options.compile:
        shared = ["--device", str(device), "--threads", str(torch.get_num_threads())]
        figures = in_a_process(__file__, [*shared, "--here", preset])
        record("compile", preset, figures, device, options.results)
        print(f"compile {preset}: {json.dumps(figures)}", flush=True)


if __name__ == "__main__":
    with one_sentence("train"):
        main()
