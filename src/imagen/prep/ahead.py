"""An iterator that works ahead of who asks: one stage of a pipeline, in a thread of its own."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")

_POLL_S = 0.1  # how long a thread whose items nobody takes goes on waiting before it looks whether it is still wanted


def ahead(source: Iterable[Item], most: int) -> Generator[Item, None, None]:
    """``source``'s items in their order, of which a thread makes up to ``most`` before they are asked for.

    Its error comes where its next item would have. Closed early, it closes ``source`` and waits for the thread to end.
    ``most`` 0 makes each when it is asked for, without a thread.
    """
    if not most:
        yield from source
        return
    made: queue.Queue[tuple[str, Any]] = queue.Queue(most)
    unwanted = threading.Event()
    thread = threading.Thread(target=_make, args=(iter(source), made, unwanted), daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        unwanted.set()
        thread.join()


def _make(items: Iterator[Any], made: "queue.Queue[tuple[str, Any]]", unwanted: threading.Event) -> None:
    try:
        for item in items:
            if not _put(made, ("item", item), unwanted):
                return
        _put(made, ("end", None), unwanted)
    except BaseException as error:
        _put(made, ("error", error), unwanted)
    finally:
        if isinstance(items, Generator):
            items.close()


def _put(made: "queue.Queue[tuple[str, Any]]", entry: tuple[str, Any], unwanted: threading.Event) -> bool:
    while not unwanted.is_set():
        try:
            made.put(entry, timeout=_POLL_S)
        except queue.Full:
            continue
        return True
    return False
