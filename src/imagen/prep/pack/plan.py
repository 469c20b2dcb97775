"""Which sample goes into which output shard: a pure function of the input and the config, so that any worker knows it.

The samples of a shard each belong to a group, one for every split and shape, or are left out. Of a whole set only the
counts of the groups are kept; a group's samples, in the order of the input, are cut into shards of even size. Whoever
writes one reads the few input shards that it spans once more.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

from imagen.data.shards import SPLITS
from imagen.data.writer import source_digest
from imagen.files import Location
from imagen.prep.pack.buckets import Shape, nearest
from imagen.prep.pack.sources import Promised, read_promised
from imagen.prep.work import Workers

END = 2**64


@dataclass(frozen=True)
class Rules:
    """What decides on a sample.

    ``size`` is the least short side, ``shapes`` the buckets at that size if any; a sample whose hash with ``seed`` is
    below ``threshold`` of 2^64 is for validation.
    """

    size: int
    shapes: tuple[Shape, ...]
    seed: int
    threshold: int

    @property
    def groups(self) -> int:
        """Splits times shapes; group = split * shapes + shape."""
        return len(SPLITS) * max(1, len(self.shapes))


@dataclass(frozen=True)
class Counted:
    """What one shard of the input gives: samples of each group, why the others are left out, and what it was."""

    number: int
    digest: str
    groups: Int64[np.ndarray, " groups"]
    reasons: Counter[str]


@dataclass(frozen=True)
class Part:
    """Of the samples of ``tar`` that belong to a group, those from ``first`` to before ``last``."""

    tar: Location
    digest: str
    first: int
    last: int


@dataclass(frozen=True)
class Unit:
    """One shard to write, at every size: the ``number``-th of ``shards`` of its split."""

    split: str
    number: int
    shards: int
    group: int
    shape: Shape | None
    parts: tuple[Part, ...]

    @property
    def digest(self) -> str:
        """What changes when other samples belong into the shard."""
        parts = [[part.tar.name, part.digest, part.first, part.last] for part in self.parts]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def place(samples: Promised, rules: Rules) -> tuple[Int64[np.ndarray, " n"], Counter[str]]:
    """The group of each sample, -1 where it is left out, and how often each reason for that is met."""
    width, height = samples.width, samples.height
    if rules.shapes:
        shape = nearest(rules.shapes, width, height)
        least = np.array(rules.shapes)[shape]
        fits = (height >= least[:, 0]) & (width >= least[:, 1])
    else:
        shape, fits = np.zeros(len(width), dtype=np.int64), np.minimum(width, height) >= rules.size
    for_validation = hashes(samples, rules.seed) < min(rules.threshold, END - 1)
    split = np.where(for_validation, SPLITS.index("val"), SPLITS.index("train"))
    opened = width > 0
    reasons = {"undecodable": ~opened, "too small": opened & ~fits}
    counts = Counter({reason: int(those.sum()) for reason, those in reasons.items()})
    counts["duplicate key"] = samples.doubles
    return np.where(fits & opened, split * max(1, len(rules.shapes)) + shape, -1), +counts


def hashes(samples: Promised, seed: int) -> UInt64[np.ndarray, " n"]:
    """A number below 2^64 for each sample, the same for equal pictures."""
    digests = (hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in samples.identity)
    return np.frombuffer(b"".join(digests), dtype="<u8")


def threshold_of(tars: Sequence[Location], rules: Rules, validation: float | int, workers: Workers) -> int:
    """Below which hash a sample is for validation: of a share at once, of a number by who has the least hashes."""
    if validation < 1:
        return round(validation * END)
    least = np.empty(0, dtype=np.uint64)
    for some in workers.map(_Least(rules, int(validation)), tars, what="choosing for validation"):
        least = np.sort(np.concatenate([least, some]))[: int(validation)]
    return int(least[-1]) + 1 if len(least) else 0


@dataclass(frozen=True)
class _Least:
    rules: Rules
    count: int

    def __call__(self, tar: Location) -> UInt64[np.ndarray, " n"]:
        samples = read_promised(tar)
        groups, _ = place(samples, self.rules)
        return np.sort(hashes(samples, self.rules.seed)[groups >= 0])[: self.count]


def count(tars: Sequence[Location], rules: Rules, workers: Workers) -> list[Counted]:
    """What each shard of the input gives, in their order."""
    counted = workers.map(_Count(rules), list(enumerate(tars)), what="planning")
    return sorted(counted, key=lambda one: one.number)


@dataclass(frozen=True)
class _Count:
    rules: Rules

    def __call__(self, work: tuple[int, Location]) -> Counted:
        number, tar = work
        groups, reasons = place(read_promised(tar), self.rules)
        counts = np.bincount(groups[groups >= 0], minlength=self.rules.groups)
        return Counted(number, source_digest(tar), counts, reasons)


def units(tars: Sequence[Location], counted: Sequence[Counted], rules: Rules, shard_size: int) -> list[Unit]:
    """The shards to write: of every group as many of ``shard_size`` samples as it fills, and a last one of the rest."""
    ends = np.cumsum([one.groups for one in counted], axis=0)  # per input shard and group
    per_split = max(1, len(rules.shapes))
    made = []
    for split_number, split in enumerate(SPLITS):
        own = range(split_number * per_split, (split_number + 1) * per_split)
        cuts = [(group, first) for group in own for first in range(0, int(ends[-1, group]), shard_size)]
        for number, (group, first) in enumerate(cuts):
            parts = _parts(tars, counted, ends[:, group], first, min(first + shard_size, int(ends[-1, group])))
            shape = rules.shapes[group - own.start] if rules.shapes else None
            made.append(Unit(split, number, len(cuts), group, shape, parts))
    return made


def _parts(
    tars: Sequence[Location], counted: Sequence[Counted], ends: Int64[np.ndarray, " n"], first: int, last: int
) -> tuple[Part, ...]:
    parts = []
    for i in range(int(np.searchsorted(ends, first, side="right")), len(tars)):
        begin = int(ends[i - 1]) if i else 0
        if begin >= last:
            break
        if ends[i] > begin:
            parts.append(Part(tars[i], counted[i].digest, max(first - begin, 0), min(last, int(ends[i])) - begin))
    return tuple(parts)
