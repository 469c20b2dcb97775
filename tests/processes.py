"""Python commands as processes of their own, of which none outlives its test."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def running(command: list[str], cwd: Path, log: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """``python *command`` in a session of its own, as a scheduler starts it; what it says goes to ``log``."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **environment}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=cwd, env=variables, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def train_on_two_ranks(trainings: list[list[str]], folder: Path, seconds: float = 300) -> list[str]:
    """Train with each list of overrides, one after the other in one pair of processes, as torchrun starts them.

    What the ranks said is returned; a rank that fails fails the test.
    """
    script = folder / "trainings.py"
    script.write_text(
        "import json, sys\n"
        "from imagen.cli import compose\n"
        "from imagen.training import train\n"
        "for overrides in json.loads(sys.argv[1]):\n"
        "    train(compose('train', overrides))\n"
    )
    said, statuses = on_two_ranks([[str(script), json.dumps(trainings)]] * 2, folder, seconds)
    assert statuses == [0, 0], "\n".join([*said, f"statuses: {statuses}"])
    return said


def on_two_ranks(commands: list[list[str]], folder: Path, seconds: float) -> tuple[list[str], list[int]]:
    """Run a command a rank, with the environment that torchrun gives its own; what each said, and its status."""
    logs = [folder / f"rank{rank}.log" for rank in range(2)]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "test"}
    common |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    with ExitStack() as stack:
        ranks = []
        for rank, command in enumerate(commands):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(stack.enter_context(running(command, ROOT, logs[rank], **common, **own)))
        statuses = [process.wait(seconds) for process in ranks]
    return [log.read_text() for log in logs], statuses
