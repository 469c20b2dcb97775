import itertools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from imagen.data import stream
from imagen.data.stream import Batches, Crop, Delivery, Fault, Order, Sample, Shard, Shuffle

SHARDS = tuple(Shard(Path(f"{i}.tar"), Path(f"{i}.text.tar"), count) for i, count in enumerate([5, 3, 8, 1, 4]))
TOTAL = 21


def order(**changed) -> Order:
    plain = {"shards": SHARDS, "seed": 1, "rank": 0, "world": 1, "batch_size": 4, "start": 0, "training": True}
    return Order(**(plain | changed))


def as_worker(monkeypatch: pytest.MonkeyPatch, worker: int, workers: int) -> None:
    info = SimpleNamespace(id=worker, num_workers=workers)
    monkeypatch.setattr(stream, "get_worker_info", lambda: info)


def read(pieces):
    """(epoch, (shard, index)) of every sample, as a reader would."""
    for piece in pieces:
        for index in range(piece.first, piece.shard.count, piece.step):
            yield piece.epoch, (piece.shard.images.stem, index)


def epoch_of(place: Order, epoch: int) -> list:
    return [sample for _, sample in read(place.pieces(epoch))]


def sample(number: int, tokens: int = 2) -> Sample:
    return Sample(f"{number}", np.full((2, 2, 3), number, np.uint8), torch.ones(tokens, 3).half(), f"caption {number}")


def numbers(deliveries: list[Delivery]) -> list[list[int]]:
    return [batch.image[:, 0, 0, 0].tolist() for batch, _ in deliveries if batch is not None]


def test_every_sample_once_an_epoch_in_another_order_each():
    first, second = epoch_of(order(), 0), epoch_of(order(), 1)
    assert len(set(first)) == len(first) == TOTAL
    assert set(first) == set(second)
    assert first != second
    assert first == epoch_of(order(), 0)
    assert first != epoch_of(order(seed=2), 0)


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 1), (1, 2), (2, 2), (5, 1), (3, 2), (4, 5)])
@pytest.mark.parametrize("epoch", [0, 3])
def test_shares_are_disjoint_and_whole(monkeypatch: pytest.MonkeyPatch, world: int, workers: int, epoch: int):
    # 5 shards: whole shards for up to 5 shares, single samples for more
    read = []
    for rank, worker in itertools.product(range(world), range(workers)):
        as_worker(monkeypatch, worker, workers)
        share = epoch_of(order(rank=rank, world=world), epoch)
        assert share
        read += share
    assert len(set(read)) == len(read) == TOTAL


def test_split_by_sample_is_even_and_changes_with_the_epoch():
    shares = [[epoch_of(order(rank=rank, world=6), epoch) for rank in range(6)] for epoch in range(12)]
    assert {len(share) for epoch in shares for share in epoch} == {3, 4}
    assert len(set().union(*(epoch[0] for epoch in shares))) > 12


@pytest.mark.parametrize("world", [1, 2, 4])
def test_validation_is_one_pass_in_fixed_order(world: int):
    places = [order(rank=rank, world=world, training=False) for rank in range(world)]
    shares = [[sample for _, sample in read(place())] for place in places]
    assert sorted(itertools.chain(*shares)) == sorted(epoch_of(order(), 0))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert shares[0] == sorted(shares[0])


@pytest.mark.parametrize("start", [1, 4, 5, 6, 21, 100])
@pytest.mark.parametrize("world", [1, 6])
def test_resumed_stream_equals_unstopped(start: int, world: int):
    def samples(start: int):
        place = order(start=start, rank=world - 1, world=world)
        return place.skip(Shuffle(3, seed=1)(read(place())))

    unstopped = list(itertools.islice(samples(0), start * 4, start * 4 + 60))
    assert list(itertools.islice(samples(start), 60)) == unstopped


def test_resuming_reads_no_whole_epoch_again():
    epoch, delivered = order(start=10**4)._resume_point()
    assert epoch * TOTAL + delivered == 4 * 10**4
    assert delivered < TOTAL


def test_workers_are_renamed_so_that_batches_come_from_the_next_in_turn(monkeypatch: pytest.MonkeyPatch):
    for start, worker in [(0, 1), (4, 1), (3, 2), (5, 0)]:
        as_worker(monkeypatch, worker, 2 + 1)
        assert order(start=start)._worker() == ((worker + start) % 3, 3)


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_shuffling_keeps_epochs_apart(size: int):
    pairs = [(epoch, i) for epoch in range(3) for i in range(50)]
    shuffled = list(Shuffle(size, seed=7)(pairs))
    assert [epoch for epoch, _ in shuffled] == [epoch for epoch, _ in pairs]
    orders = [[i for epoch, i in shuffled if epoch == number] for number in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert shuffled == list(Shuffle(size, seed=7)(pairs))
    if size > 1:
        assert orders[0] != orders[1] != list(range(50))
        assert shuffled != list(Shuffle(size, seed=8)(pairs))
    else:
        assert shuffled == pairs


def test_a_large_buffer_shuffles_evenly():
    places = Counter(next(iter(Shuffle(8, seed)((0, i) for i in range(8))))[1] for seed in range(800))
    assert all(60 < places[i] < 140 for i in range(8))


def test_endless_batches_are_full():
    made = list(itertools.islice(Batches(4, flip=False, count=None)(map(sample, range(11))), 2))
    assert numbers(made) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(("total", "world"), [(8, 1), (9, 2), (10, 2), (33, 4), (35, 4), (4, 4)])
def test_all_ranks_make_as_many_validation_batches(total: int, world: int):
    count = stream.batch_count(total, world, 4)
    made = []
    for rank in range(world):
        own = [sample(i) for i in range(rank, total, world)]
        batches = numbers(list(Batches(4, flip=False, count=count)(own)))
        assert len(batches) == count
        assert all(len(batch) == 4 for batch in batches[:-1])
        assert len(batches[-1]) <= 5
        made += itertools.chain(*batches)
    assert sorted(made) == list(range(total))


def test_for_a_faulty_sample_the_next_good_one_stands_in():
    faults = {i: Fault("shard", str(i), "why") for i in (1, 2, 7)}
    items = [faults.get(i) or sample(i) for i in range(12)]
    made = list(Batches(4, flip=False, count=None)(items))
    assert numbers(made) == [[0, 3, 3, 3], [4, 5, 6, 8], [8, 9, 10, 11]]
    assert [fault.key for _, some in made for fault in some] == ["1", "2", "7"]
    # batch i is the same wherever reading began, also between a hole and its stand-in
    assert numbers(list(Batches(4, flip=False, count=None)(items[8:]))) == numbers(made)[2:]
    again = list(Batches(1, flip=False, count=None)(items[2:]))
    assert [number for (number,) in numbers(again)] == [3, 3, 4, 5, 6, 8, 8, 9, 10, 11]


def test_at_the_end_of_validation_the_last_good_one_stands_in():
    items = [sample(0), sample(1), Fault("shard", "2", "why")]
    assert numbers(list(Batches(4, flip=False, count=1)(items))) == [[0, 1, 1]]


def test_a_last_batch_of_nothing_but_faults_is_filled_too():
    items = [sample(0), sample(1), sample(2), sample(3), Fault("shard", "4", "why")]
    made = list(Batches(4, flip=False, count=2)(items))
    assert numbers(made) == [[0, 1, 2, 3], [3]]
    assert [fault.key for _, some in made for fault in some] == ["4"]


def test_faults_at_the_end_change_no_count_of_batches():
    items = [sample(0), *(Fault("shard", str(i), "why") for i in range(1, 10))]
    assert numbers(list(Batches(4, flip=False, count=3)(items))) == [[0] * 4, [0] * 4, [0] * 2]
    assert numbers(list(Batches(4, flip=False, count=2)(items[:9]))) == [[0] * 4, [0] * 5]


def test_nothing_but_faults_is_delivered_as_such(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream, "HOPELESS", 5)
    endless = (Fault("shard", str(i % 3), "why") for i in itertools.count())
    (delivery,) = Batches(4, flip=False, count=None)(endless)
    assert delivery.batch is None
    assert len(delivery.faults) == 5
    (delivery,) = Batches(4, flip=False, count=2)([Fault("shard", "0", "why")])
    assert delivery == Delivery(None, [Fault("shard", "0", "why")])


def test_collate_pads_text_to_the_longest_and_keeps_pixels_as_bytes():
    batch = stream.collate([sample(1, tokens=2), sample(200, tokens=5)], flip=False)
    assert batch.image.dtype == torch.uint8
    assert batch.image.shape == (2, 3, 2, 2)
    assert batch.image.is_contiguous()
    assert batch.text.tokens.dtype == torch.float32
    assert batch.text.mask.tolist() == [[True] * 2 + [False] * 3, [True] * 5]
    assert torch.equal(batch.text.tokens[..., 0], batch.text.mask.float())
    assert batch.key == ["1", "200"]
    assert batch.caption == ["caption 1", "caption 200"]
    assert not batch.can_flip.any()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog", True),
        ("Left arrow", False),
        ("a hand pointing RIGHTWARDS", False),
        ("left-facing fist", False),
        ("bright copyright sign", True),
    ],
)
def test_can_flip(caption: str, expected: bool):
    assert stream.can_flip(caption) is expected
    both = stream.collate([sample(0)._replace(caption=caption)], flip=True).can_flip.tolist()
    assert both == [expected]


def test_channels_keep_their_places():
    image = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)
    batch = stream.collate([sample(0)._replace(image=image)], flip=False)
    assert np.array_equal(batch.image[0].numpy(), image.transpose(2, 0, 1))


def test_a_crop_is_addressed_by_seed_epoch_and_key():
    image = np.arange(64).reshape(8, 8)
    crop = Crop(3, True, seed=1)
    assert np.array_equal(crop(image, 0, "a"), crop(image, 0, "a"))
    corners = {
        int(Crop(3, True, seed)(image, epoch, key)[0, 0]) for seed in (1, 2) for epoch in (0, 1) for key in "abc"
    }
    assert len(corners) > 6
    everywhere = {int(crop(image, epoch, "a")[0, 0]) for epoch in range(500)}
    assert everywhere == {8 * top + left for top in range(6) for left in range(6)}


def test_a_crop_of_the_middle_and_of_the_whole():
    image = np.arange(64).reshape(8, 8)
    assert np.array_equal(Crop(4, False, 0)(image, 5, "a"), image[2:6, 2:6])
    assert np.array_equal(Crop(8, True, 0)(image, 5, "a"), image)
