"""Work on many rows in pieces that fit in the device's memory."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from imagen.errors import UserError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Fitting:
    """Does rows at once, as many as fit: a piece that runs out of memory is halved, and later ones begin that small.

    For work whose result for a row is the same whatever rows are done with it. ``name`` is what messages call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.most: int | None = None

    def __call__(self, work: Callable[[slice], T], count: int) -> list[T]:
        """``work`` on rows 0 to ``count``, piece by piece.

        Raises: UserError if not even one row fits.
        """
        done: list[T] = []
        start = 0
        while start < count:
            stop = count if self.most is None else min(count, start + self.most)
            failed = False
            try:
                done.append(work(slice(start, stop)))
                start = stop
            except torch.OutOfMemoryError as error:
                if stop - start == 1:
                    raise UserError(
                        f"{self.name} does not fit in the device's memory, one picture at a time: set offload=true, a "
                        "smaller size, or device=cpu"
                    ) from error
                failed = True
            if failed:  # out here, since the error holds on to what was computed
                self.most = (stop - start + 1) // 2
                log.warning("%s: %d at once do not fit in memory; %d are tried", self.name, stop - start, self.most)
                torch.cuda.empty_cache()  # does nothing where there is no GPU
        return done
