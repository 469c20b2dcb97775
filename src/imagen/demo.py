"""The whole cascade in one command: python -m imagen.demo, which is what `make demo` runs.

It runs the project's own scripts, one after the other, and shows each command. Every script skips what is already
there, so running the demo again redoes only what is missing. Stopped, it lets the script in hand save what it has.
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from imagen import build
from imagen.cli import CONF, compose, one_sentence
from imagen.runs import RunFolder

ROOT = CONF.parent
DATA = "data/openmoji"
OUTPUT = "outputs/demo"
STOPPED = {status: number for number in (signal.SIGINT, signal.SIGTERM) for status in (128 + number, -number)}
"""Exit statuses of a script that was asked to stop, and the signal that asked."""

STAGES = ("demo_base16", "demo_sr64", "demo_sr256")


def main() -> None:
    """Data, embeddings, three stages, the sheet and the report."""
    with one_sentence("train"):
        started = time.perf_counter()
        folders = [RunFolder.of(build.run_config(compose("train", [f"experiment={name}"]))).path for name in STAGES]
        _run("data_prep/openmoji.py", f"root={DATA}")
        _run("data_prep/embed_text.py", f"root={DATA}", "text_encoder=minilm")
        for name in STAGES:
            _run("train.py", f"experiment={name}")
        _run("evaluate.py", f"stages=[{','.join(map(str, folders))}]", f"output_dir={OUTPUT}")
        _report(folders, time.perf_counter() - started)


def _run(script: str, *arguments: str) -> None:
    command = [script, *arguments]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    started = time.perf_counter()
    status, asked = _wait([sys.executable, *command])
    if asked or status in STOPPED:
        print("stopped; make demo goes on from there", file=sys.stderr)
        sys.exit(128 + (asked or STOPPED[status]))
    if status:
        sys.exit(f"error: python {shlex.join(command)} ended with status {status}; mend it, and run the demo again")
    print(f"  {time.perf_counter() - started:.0f} s", flush=True)


def _wait(command: list[str]) -> tuple[int, int]:
    """Run a command to its end, however long it takes to stop; its status, and the signal that came meanwhile or 0.

    Ctrl-C reaches the whole process group, so the command has it already: once more would cut its saving short.
    SIGTERM is handed on.
    """
    came: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGTERM and running:
            running[0].terminate()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        running.append(subprocess.Popen(command, cwd=ROOT))
        return running[0].wait(), (came[0] if came else 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(folders: list[Path], seconds: float) -> None:
    report = json.loads((ROOT / OUTPUT / "report.json").read_text(encoding="utf-8"))["points"][0]["metrics"]
    print(f"\nThe demo took {seconds / 60:.1f} minutes.")
    print(f"  sheet     {OUTPUT}/grid.png")
    print(f"  report    {OUTPUT}/report.json")
    for folder in folders:
        print(f"  stage     {folder}")
    print(
        f"  retrieval_top10 {report['retrieval_top10']:.3f} (shuffled: {report['retrieval_top10_shuffled']:.3f}), "
        f"held-out cosine {report['heldout_cosine']:.3f} (shuffled: {report['heldout_cosine_shuffled']:.3f}, "
        f"p = {report['heldout_p']:.4f})"
    )
    quoted = ",".join(map(str, folders))
    print(
        f"Draw your own:  python sample.py 'stages=[{quoted}]' 'prompts=[\"red apple\",\"smiling cat\"]' num_samples=4"
    )


if __name__ == "__main__":
    main()
