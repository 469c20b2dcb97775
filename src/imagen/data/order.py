"""One order of all samples for each epoch: a pure function of (seed, epoch), whoever reads them.

A global batch is a stretch of that order. Ranks and accumulated micro-batches cut it into parts, workers take parts in
turn; so what a step trains on is the same on any number of ranks and workers, and a position is a number of batches.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch.utils.data import get_worker_info

from imagen.data.stream import Shard
from imagen.randomness import seed_of
from imagen.types import Place


def shuffled(count: int, *address: int | str) -> Int[np.ndarray, " n"]:
    """The numbers below ``count`` in an order that is a function of ``address``, the same on every machine for ever.

    They are sorted by a 64-bit hash of theirs (the finalizer of SplitMix64, Steele et al. 2014), which, unlike a
    library's permutation, no later version of one will change.
    """
    mixed = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed_of(*address))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")


@dataclass(frozen=True)
class Epoch:
    """What one epoch's order is made of, small enough to be made anew whenever it is asked for.

    ``shards``: for each bucket its shards in the order of this epoch; ``ends`` where each of them ends in that order.
    Global batch i is batch ``turn[i]`` of bucket ``bucket[i]``.
    """

    shards: list[Int[np.ndarray, " _"]]
    ends: list[Int[np.ndarray, " _"]]
    bucket: Int[np.ndarray, " g"]
    turn: Int[np.ndarray, " g"]


@dataclass(frozen=True)
class GlobalOrder:
    """The order of ``shards``' samples in global batches of ``batch_size``; the last of an epoch may be shorter.

    ``window`` shards at a time are shuffled together, so that few are open at once; as many as there are make every
    order equally likely. Shards of different ``shape`` are buckets: a batch is of one of them, each has a last batch of
    its own, and their batches take turns at random. ``training`` False keeps the order of names.
    """

    shards: tuple[Shard, ...]
    seed: int
    batch_size: int
    window: int
    training: bool

    @functools.cached_property
    def buckets(self) -> list[Int[np.ndarray, " _"]]:
        """The shards of each shape, as numbers."""
        shapes = [shard.shape for shard in self.shards]
        return [np.flatnonzero([shape == one for shape in shapes]) for one in dict.fromkeys(shapes)]

    @functools.cached_property
    def counts(self) -> Int[np.ndarray, " s"]:
        return np.array([shard.count for shard in self.shards], dtype=np.int64)

    @functools.cached_property
    def batches(self) -> int:
        """Global batches an epoch."""
        return sum(-(-int(self.counts[bucket].sum()) // self.batch_size) for bucket in self.buckets)

    def batch(self, epoch: int, number: int) -> tuple[int, int, int]:
        """Batch ``number`` of an epoch: its bucket, its first position in that bucket's order, its count."""
        made = self._epoch(epoch)
        bucket, turn = int(made.bucket[number]), int(made.turn[number])
        first = turn * self.batch_size
        return bucket, first, min(self.batch_size, int(made.ends[bucket][-1]) - first)

    def at(self, epoch: int, bucket: int, position: int) -> tuple[Shard, int]:
        """The shard and the row there of a position of a bucket's order; positions run on round the end."""
        made = self._epoch(epoch)
        shards, ends = made.shards[bucket], made.ends[bucket]
        position %= int(ends[-1])
        window = int(np.searchsorted(ends, position, side="right")) // self.window
        begin = int(ends[window * self.window - 1]) if window else 0
        if self.training:
            size = int(ends[min((window + 1) * self.window, len(ends)) - 1]) - begin
            position = begin + int(self._within(epoch, bucket, window, size)[position - begin])
        place = int(np.searchsorted(ends, position, side="right"))
        row = position - (int(ends[place - 1]) if place else 0)
        return self.shards[shards[place]], row

    def _epoch(self, number: int) -> Epoch:
        if number not in self._epochs:
            while len(self._epochs) > 1:  # the last and this one
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[number] = self._made(number)
        return self._epochs[number]

    @functools.cached_property
    def _epochs(self) -> dict[int, Epoch]:
        return {}

    def _made(self, number: int) -> Epoch:
        shards = []
        for bucket, members in enumerate(self.buckets):
            mixed = shuffled(len(members), self.seed, "shards", number, bucket) if self.training else slice(None)
            shards.append(members[mixed])
        ends = [np.cumsum(self.counts[members]) for members in shards]
        bucket = np.repeat(np.arange(len(ends)), [-(-int(end[-1]) // self.batch_size) for end in ends])
        if self.training and len(ends) > 1:
            bucket = bucket[shuffled(len(bucket), self.seed, "buckets", number)]
        turn = np.empty_like(bucket)
        for one in range(len(ends)):
            turn[bucket == one] = np.arange((bucket == one).sum())
        return Epoch(shards, ends, bucket, turn)

    def _within(self, epoch: int, bucket: int, window: int, size: int) -> Int[np.ndarray, " n"]:
        if (epoch, window) not in (made := self._windows.setdefault(bucket, {})):
            while len(made) > 1:  # the last and this one: parts and their stand-ins straddle no more
                made.pop(next(iter(made)))
            made[epoch, window] = shuffled(size, self.seed, "window", epoch, bucket, window)
        return made[epoch, window]

    @functools.cached_property
    def _windows(self) -> dict[int, dict[tuple[int, int], Int[np.ndarray, " _"]]]:
        return {}


@dataclass(frozen=True)
class Part:
    """A local batch yet to be read: positions ``first`` to ``first + count - 1`` of a bucket's order in an epoch.

    ``place`` is where its rows lie in the global batch. A part without rows is to be given one that counts nothing.
    """

    epoch: int
    bucket: int
    first: int
    count: int
    place: Place


@dataclass(frozen=True)
class Deal:
    """The parts of this process's worker, in turn; the first stage of a pipeline.

    A global batch's rows lie micro-batch after micro-batch, in each the ranks side by side, as even as can be.
    ``start`` counts the local batches that the trainer has had; ``endless`` False ends after one epoch. Picklable: a
    spawned worker cannot ask torch.distributed for its rank, so it is handed in.
    """

    order: GlobalOrder
    rank: int
    world: int
    accumulate: int
    start: int
    endless: bool

    def __call__(self) -> Iterator[Part]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        for local in itertools.count(self.start + worker, workers):
            batch, micro = divmod(local, self.accumulate)
            epoch, number = divmod(batch, self.order.batches)
            if epoch and not self.endless:
                return
            yield self._part(epoch, number, micro * self.world + self.rank)

    def _part(self, epoch: int, number: int, part: int) -> Part:
        bucket, first, total = self.order.batch(epoch, number)
        parts = self.world * self.accumulate
        begin, end = part * total // parts, (part + 1) * total // parts
        return Part(epoch, bucket, first + begin, end - begin, Place(begin, end - begin, total, self.order.batch_size))
