"""Parts of the order into batches, with stand-ins for what is unfit."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from imagen.data import parts as parts_module
from imagen.data.order import Deal, GlobalOrder
from imagen.data.parts import ReadParts
from imagen.data.stream import Sample, Shard

COUNT = 11
SHARD = Shard(Path("a.tar"), None, COUNT)


class Row(NamedTuple):
    shard: str
    key: str


def read(wanted):
    return [Row(shard.images.name, str(row)) for shard, row in wanted]


class Decoder:
    def __init__(self, unfit=()):
        self.unfit = {str(row) for row in unfit}

    def sample(self, epoch: int, raw: Row) -> Sample:
        if raw.key in self.unfit:
            raise ValueError("why")
        return Sample(raw.key, np.full((2, 2, 3), int(raw.key), np.uint8), torch.ones(1, 3), f"epoch {epoch}")


def batches(unfit=(), steps=6, world=1, rank=0, training=False, start=0):
    order = GlobalOrder((SHARD,), 5, 4, 1, training)
    stage = ReadParts(order, read, Decoder(unfit).sample, False)
    return list(stage(itertools.islice(Deal(order, rank, world, 1, start, True)(), steps)))


def keys(deliveries):
    return [[int(key) for key in delivery.batch.key] for delivery in deliveries]


def test_a_part_becomes_a_batch():
    made = batches(steps=4)
    assert keys(made) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10], [0, 1, 2, 3]]
    assert [len(delivery.batch) for delivery in made] == [delivery.batch.place.count for delivery in made]
    assert made[3].batch.caption == ["epoch 1"] * 4
    assert all(delivery.faults == [] for delivery in made)


def test_for_an_unfit_sample_the_next_fit_one_stands_in():
    made = batches(unfit=[1, 2, 10], steps=3)
    assert keys(made) == [[0, 3, 3, 3], [4, 5, 6, 7], [8, 9, 0]]  # after the last comes the first
    assert [{fault.key for fault in delivery.faults} for delivery in made] == [{"1", "2"}, set(), {"10"}]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_what_stands_in_is_the_same_on_any_number_of_ranks(world: int):
    whole = keys(batches(unfit=[0, 4, 5], steps=9, training=True))
    ranks = [keys(batches(unfit=[0, 4, 5], steps=9, world=world, rank=rank, training=True)) for rank in range(world)]
    assert [list(itertools.chain(*step)) for step in zip(*ranks, strict=True)] == whole


def test_a_rank_without_rows_gets_one_that_counts_nothing():
    made = [batches(steps=3, world=4, rank=rank)[2].batch for rank in range(4)]
    assert [len(batch) for batch in made] == [1] * 4
    assert [batch.place.count for batch in made] == [0, 1, 1, 1]
    assert [batch.place.share(4) for batch in made] == pytest.approx([0, 1, 1, 1])


def test_nothing_fit_is_delivered_as_such(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts_module, "HOPELESS", 5)
    (delivery,) = batches(unfit=range(COUNT), steps=1)
    assert delivery.batch is None
    assert len(delivery.faults) == 5
