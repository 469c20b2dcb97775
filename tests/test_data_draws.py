"""Shards drawn with replacement: endless, seeded, and nobody waits for anybody."""

import itertools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_set

from imagen.data import draws as draws_module
from imagen.data.draws import Draws
from imagen.data.reader import Decode
from imagen.data.shards import text_folder, write_tar
from imagen.data.stream import Crop, Shard

COUNTS = [10, 4, 2]
FINGERPRINT = small_set.ENCODER.fingerprint()
DECODE = Decode(8, 8, False, 0, Crop(None, False, 0), False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shard, ...]:
    root = tmp_path_factory.mktemp("set")
    small_set.write_split(root, "train", COUNTS)
    text = text_folder(root, "train", "hash", FINGERPRINT)
    tars = sorted((root / "train" / "images-8").glob("*.tar"))
    return tuple(Shard(tar, text / tar.name, count) for tar, count in zip(tars, COUNTS, strict=True))


def drawn(shards: tuple[Shard, ...], batches: int, **changed) -> list:
    plain = {"seed": 1, "rank": 0, "world": 1, "accumulate": 1, "start": 0, "size": 4, "shuffle_buffer": 6}
    stage = Draws(shards, FINGERPRINT, DECODE, **(plain | changed), flip=False)
    return [delivery.batch for delivery in itertools.islice(stage(), batches)]


def keys(batches: list) -> list[str]:
    return list(itertools.chain(*(batch.key for batch in batches)))


def test_each_sample_comes_as_often_as_any_other(shards: tuple[Shard, ...]):
    found = Counter(keys(drawn(shards, 1500)))
    # shards are drawn whole: 6000 samples are some 600 draws, so a sample's count strays by a tenth
    assert len(found) == sum(COUNTS)
    assert all(abs(count - 375) < 150 for count in found.values())


def test_the_seed_and_the_start_decide_and_nothing_else(shards: tuple[Shard, ...]):
    first = keys(drawn(shards, 20))
    assert first == keys(drawn(shards, 20))
    assert first != keys(drawn(shards, 20, seed=2))
    assert first != keys(drawn(shards, 20, start=20))  # resumed: drawn anew
    assert first != keys(drawn(shards, 20, rank=1, world=2))


def test_workers_draw_for_themselves(shards: tuple[Shard, ...], monkeypatch: pytest.MonkeyPatch):
    made = []
    for worker in range(2):
        info = SimpleNamespace(id=worker, num_workers=2)
        monkeypatch.setattr(draws_module, "get_worker_info", lambda info=info: info)
        made.append(drawn(shards, 6, accumulate=3, world=2))
    assert keys(made[0]) != keys(made[1])
    # local batches 0, 1, 2, ... of this rank are micro-batches 0, 1, 2, 0, ... and workers take them in turn
    assert [batch.place.first // 8 for batch in made[0]] == [0, 2, 1, 0, 2, 1]
    assert [batch.place.first // 8 for batch in made[1]] == [1, 0, 2, 1, 0, 2]
    assert {batch.place.total for batch in made[0]} == {24}


def test_shuffling_mixes_neighbours(shards: tuple[Shard, ...]):
    plain, mixed = (keys(drawn(shards, 30, shuffle_buffer=size)) for size in (1, 16))
    following = [sum(int(b) == int(a) + 1 for a, b in itertools.pairwise(made)) for made in (plain, mixed)]
    assert following[0] > 80
    assert following[1] < 40


def test_unfit_samples_are_passed_over_and_told(shards: tuple[Shard, ...], tmp_path: Path):
    members = [(name, b"" if name == "00001.png" else content) for name, content in small_set.image_members(range(3))]
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "t.tar", small_set.text_members(range(3)))
    stage = Draws((Shard(tmp_path / "a.tar", tmp_path / "t.tar", 3),), FINGERPRINT, DECODE, 0, 0, 1, 1, 0, 4, 1, False)
    deliveries = list(itertools.islice(stage(), 10))
    assert set(keys([delivery.batch for delivery in deliveries])) == {"00000", "00002"}
    assert {fault.key for delivery in deliveries for fault in delivery.faults} == {"00001"}


def test_nothing_fit_is_delivered_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(draws_module, "HOPELESS", 5)
    stage = Draws((Shard(tmp_path / "gone.tar", None, 3),), None, DECODE, 0, 0, 1, 1, 0, 4, 1, False)
    (delivery,) = stage()
    assert delivery.batch is None
    assert len(delivery.faults) == 5
