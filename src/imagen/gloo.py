"""Groups of gloo, torch's backend for CPUs, whose collectives run on a single thread."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch.distributed import distributed_c10d

_Gloo: Any = getattr(distributed_c10d, "ProcessGroupGloo", object)  # which a torch built without gloo lacks


class _OneThread(_Gloo):
    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        options = _Gloo._Options()
        options._timeout, options._threads = timeout, 1
        names = os.environ.get("GLOO_SOCKET_IFNAME")
        options._devices = (
            [_Gloo.create_device(interface=name) for name in names.split(",")]
            if names
            else [_Gloo.create_default_device()]
        )
        super().__init__(store, rank, size, options)


@contextmanager
def one_thread_a_group() -> Iterator[None]:
    """Within it, ``torch.distributed`` makes its gloo groups with one thread each.

    A group of torch 2.13 has two, and each writes the name of the collective it ended to a string that both share,
    without a lock. "ALLGATHER_COALESCED", by which sharded tensors are gathered, is too long to lie in the string
    itself: where two end at once the heap is damaged, and the process dies without a word. torch takes no options for
    gloo, so the class it makes groups of is another meanwhile.
    """
    if not distributed_c10d.is_gloo_available():
        yield
        return
    setattr(distributed_c10d, "ProcessGroupGloo", _OneThread)  # noqa: B010 - a name that types do not let be set
    try:
        yield
    finally:
        setattr(distributed_c10d, "ProcessGroupGloo", _Gloo)  # noqa: B010
