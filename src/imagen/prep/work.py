"""Work spread by shard: over processes of this machine, and over machines that know only their own number.

Nobody hands work out. Worker ``worker_index`` of ``worker_count`` takes every ``worker_count``-th shard; a finished
shard is known by its files, so that a worker that died is made good by running its command again.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from imagen.errors import UserError

POLL = 1.0
"""Seconds between two looks at whether the parent still lives."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workers:
    """How many processes this command may use, and which share of all work is its own.

    ``num_workers`` 0 works in this process. The other two are the RANK and WORLD_SIZE of torchrun, or the point of a
    Hydra multirun: ``-m worker_index=range(8) worker_count=8``.
    """

    num_workers: int
    worker_index: int
    worker_count: int

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise UserError(f"num_workers={self.num_workers} must be at least 0 (0 works in this process alone)")
        if not 0 <= self.worker_index < self.worker_count:
            raise UserError(
                f"worker_index={self.worker_index} must be one of 0 to worker_count-1={self.worker_count - 1}"
            )

    def share(self, work: Sequence[Item]) -> list[Item]:
        """This command's part of the work."""
        return list(work[self.worker_index :: self.worker_count])

    def others(self, work: Sequence[Item]) -> list[Item]:
        """What of the work is left to other commands."""
        return [item for i, item in enumerate(work) if i % self.worker_count != self.worker_index]

    def map(
        self, task: Callable[[Item], Result], work: Sequence[Item], *, what: str, unit: str = "shard"
    ) -> Iterator[Result]:
        """``task`` of each of ``work`` (already a share) behind a progress bar, in the order in which they are done.

        ``task`` is called in other processes, so it is a module's function or an instance of a module's class. The
        first error ends it all once what was begun is done; a shard is whole or absent, so nothing is lost.
        """
        with tqdm(total=len(work), desc=what, unit=unit, disable=not work) as bar:
            for result in self._results(task, work):
                yield result
                bar.update()

    def _results(self, task: Callable[[Item], Result], work: Sequence[Item]) -> Iterator[Result]:
        if not self.num_workers:
            yield from map(task, work)
            return
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        with ProcessPoolExecutor(min(self.num_workers, max(1, len(work))), context, _begin, (os.getpid(),)) as pool:
            try:
                for future in as_completed([pool.submit(task, item) for item in work]):
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    """Ctrl-C reaches every process; the parent alone answers it. One thread each, since there is one for each core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _end_with(parent: int) -> None:
    """A parent that is killed tells nobody: its processes would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)  # nothing to tidy up: a shard is whole or absent
