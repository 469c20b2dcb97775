"""What the web and bad disks put into shards, met while training: a run goes on, or stops with one clear error."""

import itertools
import pickle
import random
import shutil
import signal
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_set
import torch

from imagen.data.index import PICTURE_FIELDS, TEXT_FIELDS, scan, write_index
from imagen.data.shards import ENCODER_MEMBER, stats_path, write_tar
from imagen.data.tokens import dump_tokens
from imagen.data.webdataset import ResampledWebDataset, WebDatasetModule
from imagen.errors import UserError

pytestmark = [
    pytest.mark.usefixtures("impatience"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # of fork in a process with threads
]

COUNT, SHARDS = 6, 4
TOTAL = COUNT * SHARDS
HURT = 8  # the sample that a fault is given to, in the second shard
LOADERS = ["exact", "indexed", "resampled"]


@pytest.fixture
def impatience() -> Iterator[None]:
    """What hangs fails."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(120)
    yield
    signal.alarm(0)


def write(root: Path, **changed: Any) -> Path:
    small_set.write_split(root, "train", [COUNT] * SHARDS, **changed)
    small_set.write_split(root, "val", [COUNT])
    return root


def build(root: Path, loader: str, **changed: Any) -> WebDatasetModule:
    options = small_set.options(root, **({"batch_size": 3, "max_unfit": 1.0} | changed))
    if loader == "indexed":
        for tar in root.glob("train/*/*.tar"):
            write_index(tar, scan(tar, PICTURE_FIELDS if tar.parent.name.startswith("images") else TEXT_FIELDS))
    made: type[WebDatasetModule] = ResampledWebDataset if loader == "resampled" else WebDatasetModule
    module = made(small_set.ENCODER, **options, **({"shuffle_buffer": 4} if loader == "resampled" else {}))
    module.setup("fit")
    return module


def take(module: WebDatasetModule, batches: int = 30) -> list[tuple[str, str, np.ndarray, torch.Tensor]]:
    """Key, caption, picture and tokens of every sample of so many batches, which are all as large as promised."""
    samples = []
    for _, batch in zip(range(batches), module.train_dataloader(), strict=False):
        assert len(batch) == batch.place.count
        tokens = [row[mask] for row, mask in zip(batch.text.tokens, batch.text.mask, strict=True)]
        samples += zip(batch.key, batch.caption, batch.image.numpy(), tokens, strict=True)
    assert len(samples) > 2 * batches
    return samples


def every_key() -> set[str]:
    return {f"{i:05}" for i in range(TOTAL)}


def tar_of(root: Path, kind: str, shard: int = HURT // COUNT) -> Path:
    (folder,) = (root / "train").glob(f"{kind}-*")
    return folder / f"{shard:05}.tar"


def huge_png(side: int = 100_000) -> bytes:
    """A PNG that declares ``side`` x ``side`` pixels, and has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def member(name: str, content: bytes) -> dict[str, Callable]:
    """The hurt sample's member of that ending gets another content."""

    def change(shard: int, members: small_set.Members) -> small_set.Members:
        return [(path, content if path == f"{HURT:05}.{name}" else old) for path, old in members]

    return {"texts" if name == "safetensors" else "images": change}


ONE_LOST = {
    "huge picture": (member("png", huge_png()), "DecompressionBomb|too large"),
    "empty picture": (member("png", b""), "cannot be decoded"),
    "empty caption": (member("txt", b""), "another caption"),
    "empty tokens": (member("safetensors", b""), "not a text embedding"),
    "pickled picture": (member("png", pickle.dumps([1])), "cannot be decoded"),
    "pickled tokens": (member("safetensors", pickle.dumps([1])), "not a text embedding"),
    "another caption": (member("safetensors", dump_tokens(torch.ones(3, 8), "another")), "another caption"),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("fault", ONE_LOST)
def test_a_bad_sample_is_counted_and_the_run_goes_on(tmp_path: Path, loader: str, fault: str):
    changed, reason = ONE_LOST[fault]
    module = build(write(tmp_path, **changed), loader, max_unfit=0.001)
    assert {key for key, *_ in take(module)} == every_key() - {f"{HURT:05}"}
    ((found, why),) = module.unfit["train"].found.items()
    assert found == (str(tar_of(tmp_path, "images")), f"{HURT:05}")
    assert any(words in why for words in reason.split("|")), why


def renamed(name: str) -> dict[str, Callable]:
    def change(shard: int, members: small_set.Members) -> small_set.Members:
        return [(path.replace(f"{HURT:05}.", f"{name}."), content) for path, content in members]

    return {"images": change, "texts": change}


def captioned(caption: str) -> dict[str, Callable]:
    tokens = dump_tokens(small_set.ENCODER.encode([caption]).tokens[0], caption)
    return member("txt", caption.encode()) | member("safetensors", tokens)


CAPTIONS = {
    "NUL": "before\0after",
    "right-to-left": "תמונה של חוף הים בשקיעה",
    "100 kB": "word " * 20_000,
    "override": "a \u202ereversed\u202c word",
}
HARMLESS = {
    "empty json": member("json", b""),
    "bad json": member("json", b'{"exif": "Image Orientation'),
    "upwards": renamed("../../up"),
    "absolute": renamed("/tmp/absolute"),
    "longer than a header": renamed("a" * 150),
    **{name: captioned(caption) for name, caption in CAPTIONS.items()},
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("fault", HARMLESS)
def test_odd_names_and_captions_are_data_like_any_other(tmp_path: Path, loader: str, fault: str):
    root = write(tmp_path / "set", **HARMLESS[fault])
    before = sorted(tmp_path.rglob("*"))
    module = build(root, loader, max_unfit=0.0)
    samples = take(module)
    assert module.unfit["train"].found == {}
    assert len({key for key, *_ in samples}) == TOTAL
    ((key, caption),) = {(key, text) for key, text, image, _ in samples if small_set.number_of(image) == HURT}
    assert caption == CAPTIONS.get(fault, small_set.caption(HURT))
    assert key == {"upwards": "../../up", "absolute": "/tmp/absolute", "longer than a header": "a" * 150}.get(
        fault, f"{HURT:05}"
    )
    assert [path for path in sorted(tmp_path.rglob("*")) if not path.name.endswith("_index.npy")] == before


class Bomb:
    """What pickles to code: whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("loader", LOADERS)
def test_no_code_of_the_data_runs(tmp_path: Path, loader: str):
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    pickle.loads(bomb)
    (tmp_path / "ran").unlink()  # it works

    def mined(shard: int, members: small_set.Members) -> small_set.Members:
        kinds = ("pickle", "pyd", "pth", "pkl", "pt", "npy", "py")
        head = [one for one in members if one[0] == ENCODER_MEMBER]
        rest = [one for one in members if one[0] != ENCODER_MEMBER]
        keys = dict.fromkeys(name.split(".")[0] for name, _ in rest)
        return head + [one for key in keys for one in [*((f"{key}.{kind}", bomb) for kind in kinds), *_of(key, rest)]]

    module = build(write(tmp_path, images=mined, texts=mined), loader, max_unfit=0.0)
    assert {key for key, *_ in take(module)} == every_key()
    assert not (tmp_path / "ran").exists()


def _of(key: str, members: small_set.Members) -> small_set.Members:
    return [(name, content) for name, content in members if name.startswith(f"{key}.")]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("apart", [False, True])
def test_of_a_key_met_twice_no_half_is_given_to_the_other(tmp_path: Path, loader: str, apart: bool):
    """Side by side they are one sample, of which the last counts; apart, one of them has the text of the other."""
    other = [(f"{HURT:05}.png", small_set.picture(200)), (f"{HURT:05}.txt", b"picture 200")]

    def doubled(shard: int, members: small_set.Members) -> small_set.Members:
        place = next((i for i, (name, _) in enumerate(members) if name == f"{HURT:05}.json"), None)
        if place is None:
            return members
        return [*members, *other] if apart else [*members[:place], *other, *members[place:]]

    root = write(tmp_path, images=doubled)
    if apart:
        stats_path(tar_of(root, "images")).write_text(f'{{"successes": {COUNT + 1}}}')
    module = build(root, loader)
    samples = take(module)
    for key, caption, image, _ in samples:
        assert caption == small_set.caption(small_set.number_of(image)) == small_set.caption(int(key))
    assert {key for key, *_ in samples} >= every_key() - {f"{HURT:05}"}
    assert {key for _, key in module.unfit["train"].found} <= {f"{HURT:05}"}


def damaged(content: bytes, rng: random.Random, cut: bool) -> bytes:
    place = rng.randrange(len(content))
    return (
        content[:place]
        if cut
        else content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
    )


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", ["images", "text"])
@pytest.mark.parametrize("cut", [True, False], ids=["cut", "flipped"])
def test_a_damaged_tar_costs_samples_of_its_own_alone(tmp_path: Path, loader: str, kind: str, cut: bool):
    root = write(tmp_path)
    whole = tar_of(root, kind).read_bytes()
    own = {f"{i:05}" for i in range(COUNT, 2 * COUNT)}
    rng = random.Random(0)
    for _ in range(5):
        module = build(root, loader)  # its index is of the whole tar
        tar_of(root, kind).write_bytes(damaged(whole, rng, cut))
        samples = take(module)
        tar_of(root, kind).write_bytes(whole)
        for key, caption, _, _ in samples:  # pixels carry no name, and may be of another colour
            assert caption == small_set.caption(int(key))
        assert {key for key, *_ in samples} >= every_key() - own
        assert {shard for shard, _ in module.unfit["train"].found} <= {str(tar_of(root, "images"))}


@pytest.mark.parametrize("loader", LOADERS)
def test_more_than_the_limit_stops_with_the_shard_named(tmp_path: Path, loader: str):
    root = write(tmp_path)
    module = build(root, loader, max_unfit=0.001)
    tar = tar_of(root, "images")
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(UserError, match=rf"samples are unfit.*worst shards: {tar} \(\d\): make these again"):
        take(module, 60)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_sidecar_of_another_encoder_within_a_folder_stops_the_run(tmp_path: Path, loader: str):
    root = write(tmp_path)
    tar = tar_of(root, "text")
    with tarfile.open(tar) as archive:
        members = [(one.name, archive.extractfile(one).read()) for one in archive]  # type: ignore[union-attr]
    write_tar(tar, [(ENCODER_MEMBER, b'{"name": "another"}'), *members[1:]])
    with pytest.raises(UserError, match=rf"most often: no text embedding; worst shards: {tar_of(root, 'images')}"):
        take(build(root, loader, max_unfit=0.001), 60)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", ["images", "text"])
def test_shards_that_vanish_while_workers_read_stop_the_run(tmp_path: Path, loader: str, workers: int, kind: str):
    root = write(tmp_path)
    module = build(root, loader, num_workers=workers, max_unfit=0.001, window=1)
    batches = iter(module.train_dataloader())
    next(batches)
    shutil.rmtree(tar_of(root, kind).parent)
    reasons = "the shard cannot be read|the tar is damaged|no text embedding"
    with pytest.raises(UserError, match=rf"samples are unfit.*most often: ({reasons}); worst shards: "):
        list(itertools.islice(batches, 100))


@pytest.mark.parametrize("loader", LOADERS)
def test_with_nothing_left_to_read_it_gives_up(tmp_path: Path, loader: str):
    root = write(tmp_path)
    module = build(root, loader, num_workers=2)
    shutil.rmtree(root / "train")
    with pytest.raises(UserError, match="no fit sample among 1000 in a row; most often: the "):
        take(module)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_shard_that_vanishes_is_made_good_by_others_within_the_limit(tmp_path: Path, loader: str):
    root = write(tmp_path)
    module = build(root, loader, num_workers=1)
    tar_of(root, "images").unlink()
    assert {key for key, *_ in take(module)} == every_key() - {f"{i:05}" for i in range(COUNT, 2 * COUNT)}
