"""One process at a time: a lock that the operating system lets go of when its holder ends, however it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: two processes are then not told apart
    fcntl = None


@contextmanager
def hold(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone holds ``path``, an empty file that is made, for as long as the block lasts.

    False where another process holds it; with ``wait`` it is waited for. A file system without locks holds nothing
    back.
    """
    with path.open("w") as lock:
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks
            pass
        yield True
