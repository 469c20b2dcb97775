"""What files say of many shards, read at once: a bucket answers many requests in the time of one."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 16

Item = TypeVar("Item")
State = TypeVar("State")


def gather(read: Callable[[Item], State], work: Sequence[Item]) -> list[State]:
    """``read`` of each of ``work``, in its order."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read, work))


def gather_done(read: Callable[[Item], State | None], work: Sequence[Item]) -> list[State] | None:
    """``read`` of all; None, which is told, where it is None of some: they are left to workers that are not done."""
    states = gather(read, work)
    done = [state for state in states if state is not None]
    if len(done) == len(work):
        return done
    print(
        f"other workers are not done yet (shards still missing: {len(work) - len(done)}): run the same command again "
        "once they are"
    )
    return None
