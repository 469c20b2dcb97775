"""A loader's worker, alone: this module imports little, so that a spawned one starts soon."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from imagen.data.stream import begin_worker


class ManyTensors(IterableDataset):
    """Batches that take long to send: a worker is stopped amid one."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        while True:
            yield [torch.zeros(10) for _ in range(1000)]


def test_a_spawned_worker_stopped_amid_sending_ends_well():
    options = {"num_workers": 2, "multiprocessing_context": "spawn", "worker_init_fn": begin_worker}
    iterator = iter(DataLoader(ManyTensors(), batch_size=None, **options))
    for _ in range(2):
        next(iterator)
    workers = iterator._workers
    del iterator
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
