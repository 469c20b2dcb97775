"""Python commands as processes of their own, of which none outlives its test."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def running(command: list[str], cwd: Path, log: Path, **environment: str) -> Iterator[subprocess.Popen]:
    """``python *command`` in a session of its own, as a scheduler starts it; what it says goes to ``log``."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
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
