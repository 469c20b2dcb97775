"""What the data modules share: local batches, loaders that go on where training stopped, the count of unfit samples."""

import logging
import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.util import Finalize
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader
from webdataset.pipeline import DataPipeline

from imagen.data.order import Deal, GlobalOrder
from imagen.data.parts import Decode, Read, ReadParts
from imagen.data.stream import Crop, Delivery, Fault, Shard, as_it_is, begin_worker
from imagen.errors import UserError
from imagen.text_encoder import TextEncoder
from imagen.types import Batch

log = logging.getLogger(__name__)


class Unfit:
    """The samples of one split that could not be used, each counted once however often it is met.

    UserError, naming the worst shards, once they are more than ``allowed`` (a fraction) of the samples seen, where
    "seen" counts as at least 10,000 or the whole set, lest bad luck at the start stops a run that would have kept its
    limit. Each of ``ranks`` counts its own share. A single one never stops a run.
    """

    LOGGED = 20

    def __init__(self, total: int, allowed: float, ranks: int = 1) -> None:
        self.total, self.least, self.allowed = total // ranks, 10_000 // ranks, allowed
        self.seen = 0
        self.found: dict[tuple[str, str], str] = {}

    def add(self, seen: int, faults: list[Fault]) -> None:
        self.seen += seen
        for shard, key, reason in faults:
            if (shard, key) not in self.found:
                self.found[shard, key] = reason
                if len(self.found) <= self.LOGGED:
                    last = " (further ones are counted, not logged)" if len(self.found) == self.LOGGED else ""
                    log.warning("unfit sample %s of %s: %s%s", key, shard, reason, last)
        of = min(self.total, max(self.seen, self.least))
        if len(self.found) > max(1, self.allowed * of):
            raise self.error(
                f"{len(self.found)} of {of} samples are unfit, more than data.max_unfit={self.allowed} allows"
            )

    def error(self, what: str) -> UserError:
        """``what`` is wrong, and where it is worst."""
        shards = Counter(shard for shard, _ in self.found)
        reason = Counter(self.found.values()).most_common(1)[0][0]
        worst = ", ".join(f"{shard} ({count})" for shard, count in shards.most_common(3))
        return UserError(
            f"{what}; most often: {reason}; worst shards: {worst}: make these again, or raise data.max_unfit"
        )


class Loader:
    """Deliveries of a DataLoader into batches, faults told to ``unfit``; ``length`` in batches, None if endless.

    ``deliveries`` is asked at each iteration, so that an endless stream goes on where the trainer is. ``complete`` is
    what each batch then goes through in the trainer's own process.
    """

    def __init__(
        self,
        deliveries: Callable[[], Iterable[Delivery]],
        unfit: Unfit,
        length: int | None,
        complete: Callable[[Batch], Batch],
    ) -> None:
        self._deliveries, self._unfit, self._length, self._complete = deliveries, unfit, length, complete

    def __iter__(self) -> Iterator[Batch]:
        for batch, faults in self._deliveries():
            self._unfit.add(len(batch or ()), faults)
            if batch is None:
                raise self._unfit.error(f"no fit sample among {len(faults)} in a row")
            yield self._complete(batch)

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("the training stream has no end")
        return self._length


def kill_workers() -> None:
    """At exit. Multiprocessing ends its daemons by SIGTERM, which workers ignore, and would wait for them for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take them for crashed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class StreamModule(lightning.LightningDataModule, ABC):
    """A set of captioned pictures as endless training batches and finite validation batches.

    ``batch_size`` is the global one: a rank's batch is ``batch_size / (ranks x accumulated batches)``. Every sample
    comes once an epoch, in an order that neither ranks nor workers change (``imagen.data.order``, which tells of
    ``window``); a resumed training goes on where it was. Pictures are read at ``resolution``; of each, training sees a
    random square of ``crop`` pixels, validation the middle one; None: the whole of it. ``num_workers`` None: one a
    core, at most 8.
    """

    text_fingerprint: dict[str, Any]
    shards: dict[str, tuple[Shard, ...]]

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        resolution: int,
        crop: int | None,
        batch_size: int,
        seed: int,
        num_workers: int | None,
        multiprocessing_context: str | None,
        flip: bool,
        window: int,
        max_unfit: float,
    ) -> None:
        super().__init__()
        if crop is not None and not 0 < crop <= resolution:
            raise UserError(f"data.crop={crop} must be 1 to data.resolution={resolution} pixels, or null")
        methods = multiprocessing.get_all_start_methods()
        if multiprocessing_context not in (None, *methods):
            raise UserError(f"data.multiprocessing_context={multiprocessing_context} must be null or one of {methods}")
        if num_workers is not None and num_workers < 0:
            raise UserError(f"data.num_workers={num_workers} must be at least 0, or null for one a core")
        if window < 1:
            raise UserError(f"data.window={window} must be at least 1: so many shards are shuffled together")
        self.encoder, self.resolution, self.batch_size, self.seed = encoder, resolution, batch_size, seed
        self.crop, self.window = crop, window
        self.num_workers = min(8, _cores()) if num_workers is None else num_workers
        self.multiprocessing_context, self.flip = multiprocessing_context, flip
        self.shards, self.unfit, self._max_unfit = {}, {}, max_unfit
        self._loaded = 0

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Find the samples, ``shards`` of train and val, and check all that can be checked before the first step."""

    @abstractmethod
    def reading(self, split: str) -> tuple[Read, Decode]:
        """How the samples of a split are read, and how they are decoded; both picklable."""

    def training_stages(self, start: int) -> list[Callable[..., Any]]:
        """The training pipeline from local batch ``start`` on; picklable."""
        order = GlobalOrder(self.shards["train"], self.seed, self.batch_size, self.window, True)
        return [Deal(order, *self._ranks(), self._accumulated(), start, True), self._reader("train", order)]

    def complete(self, batch: Batch) -> Batch:
        """What is done to each batch in the trainer's own process: by default nothing."""
        return batch

    def crop_of(self, split: str) -> Crop:
        """What is taken of each picture of a split."""
        return Crop(self.crop, split == "train", self.seed)

    def train_dataloader(self) -> Loader:
        def deliveries() -> DataLoader:
            return self._open(self.training_stages(self._start() * self._accumulated()), self.num_workers)

        return Loader(deliveries, self._unfit_of("train"), None, self.complete)

    def val_dataloader(self) -> Loader:
        # in the parts of training: they fit the memory, and put together they are the same on any number of devices
        order = GlobalOrder(self.shards["val"], self.seed, self.batch_size, self.window, False)
        stages = [Deal(order, *self._ranks(), self._accumulated(), 0, False), self._reader("val", order)]
        opened = self._open(stages, min(1, self.num_workers), persistent=True)
        return Loader(lambda: opened, self._unfit_of("val"), order.batches * self._accumulated(), self.complete)

    def state_dict(self) -> dict[str, Any]:
        """The global batches that the trainer has had, and what their order is a function of."""
        return {"batches": self._start(), "order": self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict["batches"]
        then, now = state_dict["order"], self._order()
        if then != now:
            log.warning("resumed with %s instead of %s: from here on the pictures come in another order", now, then)

    def _order(self) -> dict[str, int]:
        samples = sum(shard.count for shard in self.shards["train"])
        return {"samples": samples, "batch_size": self.batch_size, "seed": self.seed, "window": self.window}

    def _start(self) -> int:
        # the trainer's own count is the truth: workers are ahead of it, and so is Lightning's prefetching
        return self._loaded if self.trainer is None else self.trainer.global_step

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _accumulated(self) -> int:
        return 1 if self.trainer is None else self.trainer.accumulate_grad_batches

    def _unfit_of(self, split: str) -> Unfit:
        total = sum(shard.count for shard in self.shards[split])
        return self.unfit.setdefault(split, Unfit(total, self._max_unfit, self._ranks()[1]))

    def _reader(self, split: str, order: GlobalOrder) -> ReadParts:
        return ReadParts(order, *self.reading(split), self.flip)

    def _open(self, stages: list[Callable[..., Any]], workers: int, persistent: bool = False) -> DataLoader:
        if workers:
            Finalize(None, kill_workers, exitpriority=0)
        return DataLoader(
            DataPipeline(*stages),  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=as_it_is,
            worker_init_fn=begin_worker,
            num_workers=workers,
            multiprocessing_context=self.multiprocessing_context if workers else None,
            persistent_workers=workers > 0 and persistent,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator(),  # or it would draw from, and so change, the global random state
        )
