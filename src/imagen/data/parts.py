"""Parts of the global order into batches: read, decode, and let another sample stand in for one that is unfit."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from imagen.data.order import GlobalOrder, Part
from imagen.data.stream import HOPELESS, Delivery, Fault, Sample, Shard, collate

Read = Callable[[list[tuple[Shard, int]]], list[Any]]
"""Samples by (shard, row), not yet decoded: each has a ``shard`` and a ``key`` by which a fault names it."""


Decode = Callable[[int, Any], Sample]
"""``(epoch, raw) -> sample``; ValueError says in a few words why a sample cannot be used."""


@dataclass(frozen=True)
class ReadParts:
    """Each part into one batch of exactly its samples; the last stage.

    For an unfit sample the next fit one of the order stands in, which so comes twice: what stands in is a function of
    the order alone, and no rank falls behind.
    """

    order: GlobalOrder
    read: Read
    decode: Decode
    flip: bool

    def __call__(self, parts: Iterable[Part]) -> Iterator[Delivery]:
        for part in parts:
            yield self._delivery(part)

    def _delivery(self, part: Part) -> Delivery:
        part_or_one = part if part.count else replace(part, count=1)  # a rank without rows still takes its step
        positions = range(part.first, part.first + part_or_one.count)
        raws = self.read([self.order.at(part.epoch, part.bucket, position) for position in positions])
        samples: list[Sample] = []
        faults: list[Fault] = []
        for position, raw in zip(positions, raws, strict=True):
            sample = self._decoded(part.epoch, raw, faults) or self._stand_in(part, position, faults)
            if sample is None:
                return Delivery(None, faults)
            samples.append(sample)
        return Delivery(collate(samples, self.flip, part.place), faults)

    def _stand_in(self, part: Part, position: int, faults: list[Fault]) -> Sample | None:
        for further in range(position + 1, position + HOPELESS):
            (raw,) = self.read([self.order.at(part.epoch, part.bucket, further)])
            if (sample := self._decoded(part.epoch, raw, faults)) is not None:
                return sample
        return None

    def _decoded(self, epoch: int, raw: Any, faults: list[Fault]) -> Sample | None:
        try:
            return self.decode(epoch, raw)
        except ValueError as error:
            faults.append(Fault(raw.shard, raw.key, str(error)))
            return None
