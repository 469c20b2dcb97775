"""One order of all samples: every one once an epoch, the same whoever reads it."""

import itertools
import math
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from imagen.data import order as order_module
from imagen.data.order import Deal, GlobalOrder, shuffled
from imagen.data.stream import Shard

COUNTS = [5, 3, 8, 1, 4]
TOTAL = sum(COUNTS)


def shards(counts=COUNTS, shapes=None):
    return tuple(
        Shard(Path(f"{i}.tar"), None, count, None if shapes is None else shapes[i]) for i, count in enumerate(counts)
    )


def order(**changed) -> GlobalOrder:
    plain = {"shards": shards(), "seed": 1, "batch_size": 4, "window": 2, "training": True}
    return GlobalOrder(**(plain | changed))


def dealt(made: GlobalOrder, steps: int, rank=0, world=1, accumulate=1, start=0, endless=True) -> list:
    return list(itertools.islice(Deal(made, rank, world, accumulate, start, endless)(), steps))


def samples(made: GlobalOrder, part) -> list:
    places = [made.at(part.epoch, part.bucket, part.first + i) for i in range(part.count)]
    return [(shard.images.stem, row) for shard, row in places]


def every_sample() -> list:
    return [(str(i), row) for i, count in enumerate(COUNTS) for row in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_shuffled_is_a_permutation_with_an_address(count: int):
    made = shuffled(count, 7, "here")
    assert sorted(made) == list(range(count))
    assert np.array_equal(made, shuffled(count, 7, "here"))
    if count > 100:
        assert not np.array_equal(made, shuffled(count, 7, "there"))
        # no trace of the old order: its correlation is that of chance, 1 / sqrt(n)
        assert abs(np.corrcoef(made, np.arange(count))[0, 1]) < 0.15


def test_shuffled_is_the_same_for_ever():
    assert shuffled(12, 3, "x").tolist() == [0, 11, 5, 4, 9, 3, 6, 10, 8, 2, 1, 7]


def test_every_place_is_equally_likely():
    firsts = np.bincount([int(shuffled(8, seed)[0]) for seed in range(4000)], minlength=8)
    assert np.abs(firsts - 500).max() < 5 * math.sqrt(500 * 7 / 8)


@pytest.mark.parametrize("window", [1, 2, 5, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 21, 50])
def test_every_sample_once_an_epoch_in_another_order_each(window: int, batch_size: int):
    made = order(window=window, batch_size=batch_size)
    assert made.batches == -(-TOTAL // batch_size)
    parts = dealt(made, 3 * made.batches)
    epochs = [
        list(itertools.chain(*(samples(made, part) for part in parts if part.epoch == number))) for number in range(3)
    ]
    assert all(sorted(epoch) == every_sample() for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = order(window=window, batch_size=batch_size, seed=2)
    assert list(itertools.chain(*(samples(other, part) for part in dealt(other, made.batches)))) != epochs[0]


def test_windows_keep_shards_together():
    made = order(window=2, batch_size=TOTAL)
    (part,) = dealt(made, 1)
    names = [name for name, _ in samples(made, part)]
    ends = np.cumsum([COUNTS[i] for i in made._epoch(0).shards[0]])
    windows = [set(names[begin:end]) for begin, end in itertools.pairwise([0, ends[1], ends[3], TOTAL])]
    assert [len(window) for window in windows] == [2, 2, 1]
    assert len(set.union(*windows)) == len(COUNTS)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (5, 3), (4, 1)])
def test_parts_of_any_layout_are_the_same_global_batches(world: int, accumulate: int):
    made = order()
    steps = 2 * made.batches
    whole = [samples(made, part) for part in dealt(made, steps)]
    ranks = [dealt(made, steps * accumulate, rank, world, accumulate) for rank in range(world)]
    for number in range(steps):
        parts = [ranks[rank][number * accumulate + micro] for micro in range(accumulate) for rank in range(world)]
        assert list(itertools.chain(*(samples(made, part) for part in parts))) == whole[number]
        assert [part.place.first for part in parts] == [0, *np.cumsum([part.count for part in parts])[:-1]]
        assert {part.place.total for part in parts} == {len(whole[number])}
        counts = [part.place.count for part in parts]
        assert max(counts) - min(counts) <= 1
        # the mean of the parts' means, each weighed with its share, is the sum of the rows over those of a full batch
        share = [part.place.share(world * accumulate) for part in parts]
        assert sum(share) / len(share) == pytest.approx(len(whole[number]) / 4)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_take_turns(monkeypatch: pytest.MonkeyPatch, workers: int):
    made = order()
    whole = dealt(made, 24, accumulate=2, start=5)
    for worker in range(workers):
        info = SimpleNamespace(id=worker, num_workers=workers)
        monkeypatch.setattr(order_module, "get_worker_info", lambda info=info: info)
        assert dealt(made, 24 // workers, accumulate=2, start=5) == whole[worker::workers]


def test_started_anywhere_it_goes_on():
    made = order()
    unstopped = dealt(made, 40, world=2, accumulate=3)
    for start in range(30):
        assert dealt(made, 10, world=2, accumulate=3, start=start) == unstopped[start : start + 10]


def test_validation_is_one_pass_in_the_order_of_names():
    made = order(training=False)
    parts = dealt(made, 100, endless=False)
    assert list(itertools.chain(*(samples(made, part) for part in parts))) == every_sample()
    assert len(parts) == made.batches


def test_positions_run_on_round_the_end():
    made = order()
    assert [made.at(3, 0, i) for i in range(TOTAL)] == [made.at(3, 0, i + TOTAL) for i in range(TOTAL)]


def test_batches_are_of_one_shape_and_every_sample_comes_once():
    shapes = [(8, 8), (8, 16), (8, 8), (8, 16), (16, 8)]
    made = order(shards=shards(shapes=shapes), batch_size=3)
    assert made.batches == math.ceil(13 / 3) + math.ceil(4 / 3) + math.ceil(4 / 3)
    for epoch in range(2):
        parts = [part for part in dealt(made, 2 * made.batches) if part.epoch == epoch]
        shapes_met = [{shapes[int(name)] for name, _ in samples(made, part)} for part in parts]
        assert all(len(shape) == 1 for shape in shapes_met)
        assert sorted(itertools.chain(*(samples(made, part) for part in parts))) == every_sample()
        met = [next(iter(shape)) for shape in shapes_met]
        assert met != sorted(met)  # buckets take turns


def test_its_cost_per_sample_does_not_grow_with_the_set():
    seconds, kilobytes = [], []
    for number in (1, 1000):  # 1,000 and 1,000,000 samples
        tracemalloc.start()
        made = order(shards=shards([1000] * number), batch_size=50, window=16)
        dealt(made, 2)
        began = time.perf_counter()
        for part in dealt(made, 200, start=made.batches // 2):
            samples(made, part)
        seconds.append(time.perf_counter() - began)
        kilobytes.append(tracemalloc.get_traced_memory()[1] / 1e3)
        tracemalloc.stop()
    assert seconds[1] < 5 * seconds[0]
    assert kilobytes[1] < kilobytes[0] + 3000  # a window of 16,000 numbers and a thousand shards
