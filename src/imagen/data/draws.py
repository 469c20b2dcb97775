"""Shards drawn again and again, read from end to end and shuffled through a buffer: for sets too large to seek in.

Nothing is dealt out, so no rank waits for another and any number of them is as good: each worker draws for itself,
addressed by (seed, worker, where training started or went on).
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import get_worker_info

from imagen.data.reader import Decode, Raw, read_shard
from imagen.data.stream import HOPELESS, Delivery, Fault, Sample, Shard, collate
from imagen.randomness import seed_of
from imagen.types import Place


@dataclass(frozen=True)
class Draws:
    """Endless batches of ``size`` samples for one rank; the whole of a pipeline.

    Shards come with replacement, each as often as any other, and so does each sample. ``start`` counts the local
    batches that the trainer has had: a resumed run draws anew instead of reading again what it had.
    """

    shards: tuple[Shard, ...]
    fingerprint: dict[str, Any] | None
    decode: Decode
    seed: int
    rank: int
    world: int
    accumulate: int
    start: int
    size: int
    shuffle_buffer: int
    flip: bool

    def __call__(self) -> Iterator[Delivery]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        share = self.rank * workers + worker
        raws = self._shuffled(self._raws(share), random.Random(seed_of(self.seed, "shuffle", share, self.start)))
        places = map(self._place, itertools.count(self.start + worker, workers))
        yield from self._batches(raws, places)

    def _raws(self, share: int) -> Iterator[tuple[int, Raw]]:
        rng = random.Random(seed_of(self.seed, "draws", share, self.start))
        for draw in itertools.count():
            for raw in read_shard(rng.choice(self.shards), self.fingerprint):
                yield draw, raw

    def _shuffled(self, pairs: Iterator[tuple[int, Raw]], rng: random.Random) -> Iterator[tuple[int, Raw]]:
        buffer = list(itertools.islice(pairs, self.shuffle_buffer))
        for pair in pairs:
            place = rng.randrange(self.shuffle_buffer)
            yield buffer[place]
            buffer[place] = pair

    def _batches(self, pairs: Iterable[tuple[int, Raw]], places: Iterator[Place]) -> Iterator[Delivery]:
        pending: defaultdict[tuple[int, int] | None, list[Sample]] = defaultdict(list)  # a batch is of one shape
        faults: list[Fault] = []
        in_a_row = 0
        for draw, raw in pairs:
            samples = pending[raw.shape]
            try:
                samples.append(self.decode.sample(draw, raw))
                in_a_row = 0
            except ValueError as error:
                faults.append(Fault(raw.shard, raw.key, str(error)))
                in_a_row += 1
                if in_a_row >= HOPELESS:
                    yield Delivery(None, faults)
                    return
            if len(samples) == self.size:
                yield Delivery(collate(samples, self.flip, next(places)), faults)
                pending[raw.shape], faults = [], []

    def _place(self, local: int) -> Place:
        part = local % self.accumulate * self.world + self.rank
        total = self.size * self.world * self.accumulate
        return Place(part * self.size, self.size, total, total)
