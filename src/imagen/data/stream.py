"""What passes through a loader's pipeline: shards, samples, faults, and the local batches that workers deliver.

Every stage is picklable. A worker needs no Lightning, which takes seconds to import: so nothing that it runs is
defined beside a data module.
"""

import os
import random
import re
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from imagen.files import Location
from imagen.randomness import seed_of
from imagen.types import Batch, Place, TextEmbedding

HOPELESS = 1000
"""After so many unfit samples in a row a worker gives up: it would look for a good one for ever."""

_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclass(frozen=True)
class Shard:
    """``count`` samples: a tar of pictures, and the tar of their text embeddings if they have any.

    ``shape`` is (height, width) of every picture as it is trained on; None: the square of the data's resolution.
    """

    images: Location
    text: Location | None
    count: int
    shape: tuple[int, int] | None = None


class Sample(NamedTuple):
    """One decoded picture with its caption's tokens, if they were stored."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    tokens: Float[Tensor, "n d"] | None
    caption: str


class Fault(NamedTuple):
    """A sample that could not be used, and why."""

    shard: str
    key: str
    reason: str


class Delivery(NamedTuple):
    """What a worker sends: a batch and the faults met on the way; no batch where it met nothing else and gave up."""

    batch: Batch | None
    faults: list[Fault]


@dataclass(frozen=True)
class Crop:
    """The square of ``side`` pixels that is taken of each picture: anywhere in it, or in the middle; None: all of it.

    Where "anywhere" is, is addressed by (seed, epoch, key), so that a sample is another window every epoch and the same
    after resuming.
    """

    side: int | None
    anywhere: bool
    seed: int

    def window(self, height: int, width: int, epoch: int, key: str) -> tuple[slice, slice]:
        """Which rows and columns of a picture of ``height`` by ``width`` pixels are taken."""
        if self.side is None:
            return slice(0, height), slice(0, width)
        rng = random.Random(seed_of(self.seed, "window", epoch, key))
        room = (height - self.side, width - self.side)
        top, left = (rng.randint(0, most) if self.anywhere else most // 2 for most in room)
        return slice(top, top + self.side), slice(left, left + self.side)

    def __call__(
        self, image: Shaped[np.ndarray, "h w *channels"], epoch: int, key: str
    ) -> Shaped[np.ndarray, "_ _ *channels"]:
        return image[self.window(image.shape[0], image.shape[1], epoch, key)]


def as_it_is(delivery: Any) -> Any:
    """What a DataLoader does with deliveries, which are collated already: nothing."""
    return delivery


def leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach every process: a worker that died of them would take the trainer along.

    So it serves the step in hand, and ends when the trainer does.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def end_at_once(worker: int) -> None:
    """Have a spawned worker end as forked ones do, by ``os._exit``, once all that is to be done at exit was done.

    The thread that sends its batches may still be sharing a tensor's memory then: Python's own end would stop it amid
    torch's C++, which aborts, and the trainer would take the worker for crashed.
    """

    def leave() -> None:
        if sys.exc_info()[0] is None:  # or its traceback is still to be printed
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    Finalize(None, leave, exitpriority=-1000)  # after all of multiprocessing's own


def begin_worker(worker: int) -> None:
    """What every process that reads for the trainer begins with."""
    leave_signals_to_the_trainer(worker)
    end_at_once(worker)


def can_flip(caption: str) -> bool:
    """Whether a mirrored picture still fits its caption: not where it speaks of left or right."""
    return _SIDES.search(caption) is None


def collate(samples: list[Sample], flip: bool, place: Place) -> Batch:
    """Stack pictures, still uint8, and pad tokens to the longest caption of the batch, as float32 with a mask.

    Samples without stored tokens make a batch of none, which are encoded when the batch arrives.
    """
    image = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2).contiguous()
    flips = torch.tensor([flip and can_flip(sample.caption) for sample in samples])
    keys, captions = [sample.key for sample in samples], [sample.caption for sample in samples]
    return Batch(image, _padded(sample.tokens for sample in samples), flips, keys, captions, place)


def _padded(rows: Iterable[Float[Tensor, "n d"] | None]) -> TextEmbedding:
    filled = [torch.zeros(0, 0) if row is None else row.float() for row in rows]
    tokens = nn.utils.rnn.pad_sequence(filled, batch_first=True)
    lengths = torch.tensor([len(row) for row in filled])
    return TextEmbedding(tokens, torch.arange(tokens.shape[1]) < lengths[:, None])
