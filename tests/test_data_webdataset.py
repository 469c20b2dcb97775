import io
import json
import random
import tarfile
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small_set
import torch
from PIL import Image
from upath import UPath

from imagen.data.shards import stats_path, text_folder
from imagen.data.tokens import dump_tokens
from imagen.data.webdataset import ResampledWebDataset, WebDatasetModule
from imagen.errors import UserError
from imagen.text_encoder import Hash

# of fork in a process with threads, which Python 3.12 warns of
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

COUNTS = [10, 7, 12, 3, 8]
TOTAL = 40
OTHER = Hash(name="hash", width=12, max_length=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    small_set.write_split(folder, "train", COUNTS)
    small_set.write_split(folder, "val", [6, 3])
    return folder


def broken(folder: Path, **changes) -> Path:
    """A set whose training members ``changes`` alter."""
    small_set.write_split(folder, "train", COUNTS, **changes)
    small_set.write_split(folder, "val", [6, 3])
    return folder


def build(root: Path, encoder: Hash = small_set.ENCODER, trainer: SimpleNamespace | None = None, **changed):
    module = WebDatasetModule(encoder, **small_set.options(root, **changed))
    module.trainer = trainer  # type: ignore[assignment]
    module.setup("fit")
    return module


def place(rank: int, world: int, step: int = 0) -> SimpleNamespace:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        global_rank=rank, world_size=world, global_step=step, accumulate_grad_batches=1, strategy=strategy
    )


def take(loader, batches: int) -> list:
    iterator = iter(loader)
    return [next(iterator) for _ in range(batches)]


def keys(batches: list) -> list[str]:
    return list(chain.from_iterable(batch.key for batch in batches))


def every_key(total: int = TOTAL) -> list[str]:
    return [f"{i:05}" for i in range(total)]


def edited(ending: str, edit):
    """Change the content of every member of one ending; None removes it."""

    def change(shard: int, members: small_set.Members) -> small_set.Members:
        made = [(name, edit(name, content) if name.endswith(ending) else content) for name, content in members]
        return [(name, content) for name, content in made if content is not None]

    return change


def test_a_batch(root: Path):
    batch = next(iter(build(root).train_dataloader()))
    assert batch.image.shape == (4, 3, 8, 8)
    assert batch.image.dtype == torch.uint8
    for i in range(4):
        number = small_set.number_of(batch.image[i].numpy())
        assert batch.key[i] == f"{number:05}"
        assert batch.caption[i] == small_set.caption(number)
        own = batch.text.tokens[i][batch.text.mask[i]]
        torch.testing.assert_close(own, small_set.ENCODER.encode([batch.caption[i]]).tokens[0], atol=1e-3, rtol=1e-3)


def test_every_picture_exactly_once_an_epoch(root: Path):
    batches = take(build(root).train_dataloader(), 30)
    epochs = [keys(batches[i : i + 10]) for i in (0, 10, 20)]
    assert all(sorted(epoch) == every_key() for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert keys(take(build(root).train_dataloader(), 30)) == keys(batches)
    assert keys(take(build(root, seed=4).train_dataloader(), 10)) != epochs[0]


def test_validation_is_every_picture_in_order(root: Path):
    loader = build(root).val_dataloader()
    for _ in range(2):
        assert [batch.key for batch in loader] == [every_key(9)[:4], every_key(9)[4:8], every_key(9)[8:]]
    assert len(loader) == 3


MORE_THAN_CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
STEPS = 30  # 3 epochs of 10 global batches


def global_batches(root: Path, world: int, workers: int, start: int = 0, steps: int = STEPS, **changed) -> list:
    """The keys of each global batch, as ranks with workers read it."""
    ranks = []
    for rank in range(world):
        module = build(root, trainer=place(rank, world, start), num_workers=workers, batch_size=6, **changed)
        ranks.append(take(module.train_dataloader(), steps))
    return [keys(sorted(parts, key=lambda part: part.place.first)) for parts in zip(*ranks, strict=True)]


@pytest.fixture(scope="module")
def unstopped(root: Path) -> list:
    return global_batches(root, 1, 0)


@MORE_THAN_CORES
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_every_sample_once_an_epoch_on_any_ranks_and_workers(root: Path, unstopped: list, world: int, workers: int):
    made = global_batches(root, world, workers)
    assert made == unstopped
    per_epoch = -(-TOTAL // 6)
    for epoch in range(STEPS // per_epoch):
        assert sorted(chain(*made[epoch * per_epoch : (epoch + 1) * per_epoch])) == every_key()


@MORE_THAN_CORES
@pytest.mark.parametrize("number", range(20))
def test_stopped_anywhere_it_goes_on_on_other_ranks_and_workers(root: Path, unstopped: list, number: int):
    rng = random.Random(number)
    stop, world, workers = rng.randrange(1, STEPS - 4), rng.choice([1, 2, 3]), rng.choice([0, 0, 2, 3])
    assert global_batches(root, world, workers, stop, 4) == unstopped[stop : stop + 4]


def test_ranks_share_validation(root: Path):
    val = [list(build(root, trainer=place(rank, 2), batch_size=2).val_dataloader()) for rank in range(2)]
    counts = [[batch.place.count for batch in batches] for batches in val]
    assert counts == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]  # nine pictures: the last of rank 0 counts nothing
    assert sorted(keys(val[0])[:4] + keys(val[1])) == every_key(9)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_started_in_any_way_read_the_same(root: Path, method: str):
    def read(method: str) -> list[str]:
        module = build(root, trainer=place(1, 2), num_workers=2, multiprocessing_context=method)
        return keys(take(module.train_dataloader(), 4))

    assert read(method) == read("fork")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [3, 17])
def test_resumed_equals_unstopped(root: Path, workers: int, stop: int):
    options = {"num_workers": workers, "random_crop": True}
    unstopped = take(build(root, **options).train_dataloader(), stop + 6)
    resumed = build(root, **options)
    resumed.load_state_dict(json.loads(json.dumps(build(root, **options).state_dict() | {"batches": stop})))
    for ours, theirs in zip(take(resumed.train_dataloader(), 6), unstopped[stop:], strict=True):
        assert ours.key == theirs.key
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.text.tokens, theirs.text.tokens)


def test_crops_come_again_after_resuming_and_validation_sees_the_middle(tmp_path: Path):
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    for split in ("train", "val"):
        small_set.write_split(tmp_path, split, COUNTS, images=edited(".png", lambda name, content: png.getvalue()))
    unstopped = take(build(tmp_path, crop=4).train_dataloader(), 15)
    resumed = build(tmp_path, crop=4)
    resumed.load_state_dict(resumed.state_dict() | {"batches": 9})
    for ours, theirs in zip(take(resumed.train_dataloader(), 6), unstopped[9:], strict=True):
        assert torch.equal(ours.image, theirs.image)
    corners = {tuple(corner.tolist()) for batch in unstopped for corner in batch.image[:, :, 0, 0]}
    assert len(corners) > 15
    batch = next(iter(build(tmp_path, crop=4).val_dataloader()))
    assert np.array_equal(batch.image[0].permute(1, 2, 0).numpy(), pixels[2:6, 2:6])


def test_resuming_past_an_unfit_sample_is_exact(tmp_path: Path):
    broken(
        tmp_path, images=edited(".png", lambda name, content: b"" if name in ("00005.png", "00021.png") else content)
    )
    options = {"max_unfit": 0.5}
    unstopped = take(build(tmp_path, **options).train_dataloader(), 25)
    for stop in range(20):
        resumed = build(tmp_path, trainer=place(0, 1, stop), **options)
        assert keys(take(resumed.train_dataloader(), 3)) == keys(unstopped[stop : stop + 3])


UNFIT = {
    "picture": {"images": edited("00005.png", lambda *_: b"no picture")},
    "caption": {"images": edited("00005.txt", lambda *_: b"another caption")},
    "no caption": {"images": edited("00005.txt", lambda *_: None)},
    "no tokens": {"texts": edited("00005.safetensors", lambda *_: None)},
    "small": {"images": edited("00005.png", lambda *_: small_set.picture(5, size=4))},
}


@pytest.mark.parametrize("what", UNFIT)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_single_unfit_sample_is_counted_and_logged(
    tmp_path: Path, what: str, workers: int, caplog: pytest.LogCaptureFixture
):
    module = build(broken(tmp_path, **UNFIT[what]), num_workers=workers)
    batches = take(module.train_dataloader(), 20)
    assert {len(batch) for batch in batches} == {4}
    assert set(keys(batches)) == set(every_key()) - {"00005"}
    assert [key for _, key in module.unfit["train"].found] == ["00005"]
    assert caplog.text.count("unfit sample 00005") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_one_in_a_thousand_stops_the_run(tmp_path: Path, workers: int):
    ruined = [f"{i:05}.png" for i in range(10, 17)]
    broken(tmp_path, images=edited(".png", lambda name, content: b"" if name in ruined else content))
    with pytest.raises(UserError, match=r"samples are unfit.*cannot be decoded.*worst shards: .*/00001.tar \(\d\)"):
        take(build(tmp_path, num_workers=workers).train_dataloader(), 20)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_with_nothing_fit_stops_the_run(tmp_path: Path, workers: int):
    broken(tmp_path, images=edited(".png", lambda *_: b""))
    with pytest.raises(UserError, match="no fit sample among 1000 in a row; most often: picture cannot be decoded"):
        take(build(tmp_path, num_workers=workers, max_unfit=1.0).train_dataloader(), 1)


def test_a_truncated_shard_stops_the_run(tmp_path: Path):
    tar = broken(tmp_path) / "train" / "images-8" / "00002.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"the tar is damaged; worst shards: .*/00002.tar"):
        take(build(tmp_path).train_dataloader(), 20)


def test_the_smallest_pictures_that_are_large_enough(root: Path, tmp_path: Path):
    for size in (8, 16, 32):
        for split in ("train", "val"):
            small_set.write_split(tmp_path, split, [8], size=size)
    for resolution, folder in [
        (4, "images-8"),
        (8, "images-8"),
        (9, "images-16"),
        (16, "images-16"),
        (32, "images-32"),
    ]:
        module = build(tmp_path, resolution=resolution)
        assert module.shards["train"][0].images.parent.name == folder
        assert next(iter(module.train_dataloader())).image.shape == (4, 3, resolution, resolution)
    assert build(tmp_path, images="images-32").shards["val"][0].images.parent.name == "images-32"
    with pytest.raises(
        UserError, match=r"images-33 has no shards \(found: images-16, images-32, images-8\): make the set"
    ):
        build(tmp_path, resolution=33)


def test_where_only_buckets_are_there_they_are_named(tmp_path: Path):
    small_set.write_split(tmp_path, "train", [4])
    (tmp_path / "train" / "images-8").rename(tmp_path / "train" / "images-8-buckets")
    with pytest.raises(UserError, match=r"found: images-8-buckets\): take another, data.images=images-8-buckets"):
        build(tmp_path)


def test_missing_shards_are_named_with_the_command(tmp_path: Path):
    with pytest.raises(UserError, match=r"train/images-8 has no shards \(found: none\): make the set"):
        build(tmp_path)
    small_set.write_split(tmp_path, "train", [4])
    with pytest.raises(UserError, match=r"val/images-8 has no shards .* make the set validation=<how many>$"):
        build(tmp_path)


def test_an_unfinished_shard_is_refused(tmp_path: Path):
    tar = broken(tmp_path) / "train" / "images-8" / "00003.tar"
    stats_path(tar).unlink()
    with pytest.raises(UserError, match=r"unfinished shard.*00003.tar"):
        build(tmp_path)
    stats_path(tar).write_text("{}")
    with pytest.raises(UserError, match=r"00003_stats.json does not say how many"):
        build(tmp_path)


def test_empty_shards_are_passed_over(tmp_path: Path):
    small_set.write_split(tmp_path, "train", [4, 0, 4])
    small_set.write_split(tmp_path, "val", [4])
    assert len(build(tmp_path).shards["train"]) == 2
    small_set.write_split(tmp_path, "val", [0])
    with pytest.raises(UserError, match="no picture in them"):
        build(tmp_path)


def test_the_wrong_encoder_is_an_error_at_start(root: Path):
    with pytest.raises(
        UserError, match=r"no text embeddings by hash.*python data_prep/embed_text.py .*text_encoder=hash"
    ):
        build(root, encoder=OTHER)
    named = text_folder(root, "train", "hash", small_set.ENCODER.fingerprint()).name
    with pytest.raises(UserError, match=r"another encoder than text_encoder=hash.*python data_prep/embed_text.py"):
        build(root, encoder=OTHER, text=named)
    with pytest.raises(UserError, match=r"data.text=text-x: .* has no sidecars: python data_prep/embed_text.py"):
        build(root, text="text-x")
    assert build(root, text=named).text_fingerprint == small_set.ENCODER.fingerprint()


def test_a_missing_sidecar_is_named(tmp_path: Path):
    folder = text_folder(broken(tmp_path), "train", "hash", small_set.ENCODER.fingerprint())
    (folder / "00002.tar").unlink()
    with pytest.raises(UserError, match=r"lacks 1 sidecar.*00002.tar.*python data_prep/embed_text.py"):
        build(tmp_path)


def test_splits_embedded_by_different_weights_are_refused(tmp_path: Path):
    class Retrained(Hash):
        def fingerprint(self):
            return super().fingerprint() | {"weights": "others"}

    small_set.write_split(tmp_path, "train", [4])
    small_set.write_split(tmp_path, "val", [4], encoder=Retrained(name="hash", width=8, max_length=16))
    with pytest.raises(UserError, match="not made by the same encoder"):
        build(tmp_path)


def test_flips_are_off_unless_asked_for(tmp_path: Path):
    def turned(shard: int, members: small_set.Members) -> small_set.Members:
        return [(name, b"left arrow" if name == "00001.txt" else content) for name, content in members]

    tokens = dump_tokens(torch.ones(3, 8), "left arrow")
    broken(tmp_path, images=turned, texts=edited("00001.safetensors", lambda *_: tokens))
    for flip in (False, True):
        batches = take(build(tmp_path, flip=flip).train_dataloader(), 10)
        flags = dict(zip(keys(batches), chain.from_iterable(batch.can_flip.tolist() for batch in batches), strict=True))
        assert flags == {key: flip and key != "00001" for key in every_key()}


def test_a_window_or_a_shuffle_buffer_of_nothing_is_refused(root: Path):
    with pytest.raises(UserError, match=r"data.window=0"):
        build(root, window=0)
    with pytest.raises(UserError, match=r"data.num_workers=-1 must be at least 0"):
        build(root, num_workers=-1)
    with pytest.raises(UserError, match=r"data.shuffle_buffer=0"):
        resampled(root, shuffle_buffer=0)


def resampled(root: Path, **changed) -> ResampledWebDataset:
    options = small_set.options(root, **({"shuffle_buffer": 8} | changed))
    module = ResampledWebDataset(small_set.ENCODER, **options)
    module.setup()
    return module


def test_ranks_that_draw_by_themselves_need_a_batch_that_divides(root: Path):
    module = resampled(root)
    module.trainer = place(0, 3)  # type: ignore[assignment]
    with pytest.raises(UserError, match="batch_size=4 must be a multiple of 3 process"):
        next(iter(module.train_dataloader()))


@pytest.mark.parametrize("workers", [0, 2])
def test_resampled_shards_give_full_batches_for_ever(root: Path, workers: int):
    batches = take(resampled(root, num_workers=workers).train_dataloader(), 40)
    assert {len(batch) for batch in batches} == {4}
    assert set(keys(batches)) <= set(every_key())
    assert keys(list(resampled(root).val_dataloader())) == every_key(9)


def test_captions_are_encoded_online_where_asked(root: Path, tmp_path: Path):
    online, stored = (build(root, text=text) for text in ("online", None))
    for ours, theirs in zip(take(online.train_dataloader(), 3), take(stored.train_dataloader(), 3), strict=True):
        assert ours.key == theirs.key
        torch.testing.assert_close(ours.text.tokens, theirs.text.tokens, atol=1e-3, rtol=1e-3)
        assert torch.equal(ours.text.mask, theirs.text.mask)
    assert online.text_fingerprint == stored.text_fingerprint
    without = build(root, encoder=OTHER, text="online")  # no sidecar is asked for
    assert next(iter(without.val_dataloader())).text.tokens.shape[2] == 12


def test_shards_of_shapes_make_batches_of_one_shape(tmp_path: Path):
    shapes = {"00000": (8, 8), "00001": (8, 12), "00002": (12, 8)}

    def cut(shard: int, members: small_set.Members) -> small_set.Members:
        height, width = shapes[f"{shard:05}"]
        made = io.BytesIO()
        Image.new("RGB", (width, height)).save(made, "PNG")
        return [(name, made.getvalue() if name.endswith(".png") else content) for name, content in members]

    for split in ("train", "val"):
        small_set.write_split(tmp_path, split, [5, 6, 7], images=cut)
        for stats in (tmp_path / split / "images-8").glob("*_stats.json"):
            said = json.loads(stats.read_text())
            stats.write_text(json.dumps(said | {"shape": shapes[stats.name[:5]]}))
    batches = take(build(tmp_path).train_dataloader(), 6)
    assert sorted(keys(batches)) == every_key(18)
    assert {tuple(batch.image.shape[2:]) for batch in batches} == set(shapes.values())
    drawn = take(resampled(tmp_path).train_dataloader(), 20)
    assert {tuple(batch.image.shape[2:]) for batch in drawn} == set(shapes.values())
    halved = take(build(tmp_path, resolution=4, images="images-8").train_dataloader(), 6)
    assert {tuple(batch.image.shape[2:]) for batch in halved} == {(4, 4), (4, 6), (6, 4)}
    with pytest.raises(UserError, match=r"data.resolution=3: pictures of 12 x 8 .* whole pixels"):
        build(tmp_path, resolution=3)


def test_a_set_behind_a_url(root: Path):
    bucket = UPath("memory://bucket")
    for file in root.rglob("*.*"):
        (bucket / str(file.relative_to(root))).write_bytes(file.read_bytes())
    here, there = build(root), build("memory://bucket")  # type: ignore[arg-type]
    for ours, theirs in zip(take(here.train_dataloader(), 12), take(there.train_dataloader(), 12), strict=True):
        assert ours.key == theirs.key
        assert torch.equal(ours.image, theirs.image)


def test_pictures_are_not_reordered_within_the_sample(root: Path):
    # pixels and keys stay together through shuffling, workers and collating
    for batch in take(build(root, num_workers=2).train_dataloader(), 20):
        assert [int(key) for key in batch.key] == [small_set.number_of(np.asarray(image)) for image in batch.image]


def test_the_data_are_tars_that_anyone_can_read(root: Path):
    with tarfile.open(root / "train" / "images-8" / "00000.tar") as tar:
        assert tar.getnames()[:3] == ["00000.json", "00000.png", "00000.txt"]
