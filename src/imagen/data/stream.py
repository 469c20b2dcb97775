"""The order in which samples are read, shuffled, resumed and batched: a pure function of seed, epoch and place.

A pipeline is ``Order`` -> a reader of its pieces -> ``Shuffle`` -> ``Order.skip`` -> a decoder -> ``Batches``. Every
stage is picklable, and the process's rank is handed in: a spawned worker cannot ask torch.distributed for it. Nor does
a worker need Lightning, which takes seconds to import: so nothing that it runs is defined beside a data module.
"""

import itertools
import math
import random
import re
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from imagen.randomness import seed_of
from imagen.types import Batch, TextEmbedding

HOPELESS = 1000
"""After so many unfit samples in a row a worker gives up: it would look for a good one for ever."""

_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclass(frozen=True)
class Shard:
    """``count`` samples: a tar of pictures and the tar of their text embeddings."""

    images: Path
    text: Path
    count: int


@dataclass(frozen=True)
class Piece:
    """The samples ``first``, ``first + step``, ... of a shard, to be read in ``epoch``."""

    shard: Shard
    epoch: int
    first: int
    step: int

    def __len__(self) -> int:
        return len(range(self.first, self.shard.count, self.step))


@dataclass(frozen=True)
class Order:
    """What this process reads, and when; the first stage of a pipeline.

    A share is one worker of one rank. Training is endless, its shards in another order every epoch, dealt out whole
    where there is one for every share and sample by sample where not. Validation is one pass in the order of names,
    sample by sample, so that ranks differ by one sample at most. ``start`` counts the local batches (of
    ``batch_size``) that the trainer has had already.
    """

    shards: tuple[Shard, ...]
    seed: int
    rank: int
    world: int
    batch_size: int
    start: int
    training: bool

    def __call__(self) -> Iterator[Piece]:
        if not self.training:
            yield from self.pieces(0)
            return
        for epoch in itertools.count(self._resume_point()[0]):
            yield from self.pieces(epoch)

    def pieces(self, epoch: int) -> list[Piece]:
        """What this share reads in one epoch."""
        shards = list(self.shards)
        if self.training:
            random.Random(seed_of(self.seed, "shards", epoch)).shuffle(shards)
        share, shares = self._share()
        if self.training and len(shards) >= shares:
            return [Piece(shard, epoch, 0, 1) for shard in shards[share::shares]]
        pieces, before = [], epoch  # another residue every epoch, or a share would see the same samples for ever
        for shard in shards:
            pieces.append(Piece(shard, epoch, (share - before) % shares, shares))
            before += shard.count
        return pieces

    def skip(self, samples: Iterable[Any]) -> Iterator[Any]:
        """Drop what the trainer has had of the epoch in which it stopped; whole epochs are never read."""
        return itertools.islice(samples, self._resume_point()[1], None)

    def _share(self) -> tuple[int, int]:
        worker, workers = self._worker()
        return self.rank * workers + worker, self.world * workers

    def _worker(self) -> tuple[int, int]:
        # torch takes batches from its workers in turn, and after a resume from the first again: so rename them
        info = get_worker_info()
        return (0, 1) if info is None else ((info.id + self.start) % info.num_workers, info.num_workers)

    def _resume_point(self) -> tuple[int, int]:
        """The epoch that this share is in after ``start`` batches, and how many of its samples were delivered."""
        worker, workers = self._worker()
        delivered = len(range(worker, self.start, workers)) * self.batch_size
        for epoch in itertools.count():
            size = sum(map(len, self.pieces(epoch)))
            if delivered < size:
                return epoch, delivered
            delivered -= size
        raise AssertionError


@dataclass(frozen=True)
class Shuffle:
    """Shuffle (epoch, sample) pairs through a buffer of ``size``, emptied each epoch: still every sample once."""

    size: int
    seed: int

    def __call__(self, source: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        for epoch, pairs in itertools.groupby(source, key=lambda pair: pair[0]):
            rng = random.Random(seed_of(self.seed, "shuffle", epoch))
            buffer = list(itertools.islice(pairs, self.size))
            for pair in pairs:  # noqa: B031 - the rest of them
                place = rng.randrange(self.size)
                yield buffer[place]
                buffer[place] = pair
            rng.shuffle(buffer)
            yield from buffer


class Sample(NamedTuple):
    """One decoded picture with its caption's tokens."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    tokens: Float[Tensor, "n d"]
    caption: str


@dataclass(frozen=True)
class Crop:
    """The square of ``side`` pixels that is taken of each picture: anywhere in it, or in the middle.

    Where "anywhere" is, is addressed by (seed, epoch, key), so that a sample is another window every epoch and the same
    after resuming. A side as large as the picture is the picture.
    """

    side: int
    anywhere: bool
    seed: int

    def __call__(
        self, image: Shaped[np.ndarray, "h w *channels"], epoch: int, key: str
    ) -> Shaped[np.ndarray, "{self.side} {self.side} *channels"]:
        rng = random.Random(seed_of(self.seed, "window", epoch, key))
        room = [length - self.side for length in image.shape[:2]]
        top, left = (rng.randint(0, most) if self.anywhere else most // 2 for most in room)
        return image[top : top + self.side, left : left + self.side]


@dataclass(frozen=True)
class ReadMemory:
    """Pieces of the one shard that lies in memory into (epoch, sample) pairs."""

    samples: list[Any]

    def __call__(self, pieces: Iterable[Piece]) -> Iterator[tuple[int, Any]]:
        for piece in pieces:
            for sample in self.samples[piece.first :: piece.step]:
                yield piece.epoch, sample


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
class Batches:
    """Samples into batches of ``size``; the last stage.

    For a faulty sample the next good one stands in, which so comes twice: batch i is then made of the same stretch of
    the stream whatever went wrong before it, which makes resuming exact. At the end, where none follows, the last good
    one stands in. ``count`` is None for an endless stream; a finite one is cut into exactly ``count`` batches, so that
    all ranks make as many; the last takes what is left.
    """

    size: int
    flip: bool
    count: int | None

    def __call__(self, source: Iterable[Sample | Fault]) -> Iterator[Delivery]:
        samples: list[Sample] = []
        faults: list[Fault] = []
        last: Sample | None = None
        holes, made = 0, 0
        for item in itertools.chain(source, [None]):  # None: the end
            if isinstance(item, Fault):
                faults.append(item)
                holes += 1
                if holes >= HOPELESS:
                    yield Delivery(None, faults)
                    return
                continue
            if item is not None:
                last = item
                holes += 1  # it fills its own place too
            if last is not None:
                samples += [last] * holes
            holes = 0
            while len(samples) >= self.size and made + 1 != self.count:
                yield Delivery(collate(samples[: self.size], self.flip), faults)
                samples, faults, made = samples[self.size :], [], made + 1
        if samples or faults:
            yield Delivery(collate(samples, self.flip) if samples else None, faults)


def as_it_is(delivery: Any) -> Any:
    """What a DataLoader does with deliveries, which are collated already: nothing."""
    return delivery


def leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach every process: a worker that died of them would take the trainer along.

    So it serves the step in hand, and ends when the trainer does.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def batch_count(total: int, world: int, size: int) -> int:
    """How many batches of ``size`` (the last may have one more) each of ``world`` ranks makes of a finite set."""
    return math.ceil(total // world / size)


def can_flip(caption: str) -> bool:
    """Whether a mirrored picture still fits its caption: not where it speaks of left or right."""
    return _SIDES.search(caption) is None


def collate(samples: list[Sample], flip: bool) -> Batch:
    """Stack pictures, still uint8, and pad tokens to the longest caption of the batch, as float32 with a mask."""
    image = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2).contiguous()
    tokens = nn.utils.rnn.pad_sequence([sample.tokens.float() for sample in samples], batch_first=True)
    lengths = torch.tensor([len(sample.tokens) for sample in samples])
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    flips = torch.tensor([flip and can_flip(sample.caption) for sample in samples])
    keys, captions = [sample.key for sample in samples], [sample.caption for sample in samples]
    return Batch(image, TextEmbedding(tokens, mask), flips, keys, captions)
