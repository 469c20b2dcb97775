"""What the web and bad disks do to the scripts: bad samples are counted, bad disks told, and nothing finished is lost.

What a single script makes of damaged tars, odd members and a kill is among its own tests.
"""

import errno
import io
import json
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import small_set
from PIL import Image
from raw_shards import encoded, members, sample, scene, write_raw
from test_data_faults import Bomb, huge_png

from imagen.cli import compose
from imagen.data.shards import stats_path
from imagen.data.webdataset import WebDatasetModule
from imagen.prep.embed_text.command import embed_set
from imagen.prep.filter.command import filter_set
from imagen.prep.pack.command import pack
from imagen.prep.verify import verify
from imagen.text_encoder import Hash

REPOSITORY = Path(__file__).parents[1]
HASH = ["text_encoder=hash", "text_encoder.width=8", "text_encoder.max_length=512"]
NUL, RTL, LONG = "before\0after", "תמונה של חוף הים בשקיעה", "word " * 20_000


def picture(seed: int) -> bytes:
    return encoded(scene(40, 36, seed))


def filtered(source: Path, output: Path, *overrides: str) -> None:
    limits = ["safety=none", "min_size=16", "max_caption_length=200000"]
    filter_set(compose("data_prep/filter", [f"input={source}", f"output={output}", *limits, *overrides]))


def packed(source: Path, root: Path, *overrides: str) -> None:
    plain = ["sizes=[8,16]", "format=png", "shard_size=4", "validation=2"]
    pack(compose("data_prep/pack", [f"input={source}", f"root={root}", *plain, *overrides]))


def embedded(source: Path | None, root: Path, *overrides: str) -> None:
    embed_set(compose("data_prep/embed_text", [f"root={root}", *HASH, *overrides]))


def verified(root: Path) -> None:
    verify(compose("data_prep/verify", [f"root={root}", *HASH]))


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A shard from the web: six good samples, then one of each kind of trouble."""
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    good = [sample(f"{i:09}", picture(i)) for i in range(6)]
    twice = sample("000000000", picture(50), caption="the key of another")
    odd = [
        sample("huge", huge_png(), suffix="png"),
        sample("empty", b""),
        [("wordless.jpg", picture(51)), ("wordless.json", b""), ("wordless.txt", b"")],
        sample("../../up", picture(52)),
        sample("/tmp/absolute", picture(53)),
        twice,
        sample("nul", picture(54), caption=NUL),
        sample("right-to-left", picture(55), caption=RTL),
        sample("long", picture(56), caption=LONG),
        [*sample("mined", picture(57)), *((f"mined.{kind}", bomb) for kind in ("pickle", "pyd", "pth"))],
        sample("pickled", bomb),
    ]
    write_raw(tmp_path / "raw", 0, [*good, *odd])
    return tmp_path


def captions(root: Path) -> list[str]:
    """Of every sample of both splits, as a loader gives them: pictures and tokens are there."""
    options = small_set.options(root, **{"batch_size": 1, "max_unfit": 0.0})
    module = WebDatasetModule(Hash(name="hash", width=8, max_length=512), **options)
    module.setup("fit")
    count = sum(shard.count for shard in module.shards["train"])
    train = [batch.caption[0] for _, batch in zip(range(count), module.train_dataloader(), strict=False)]
    return train + [batch.caption[0] for batch in module.val_dataloader()]


GOOD = [f"a scene of {i:09}" for i in range(6)]


def test_bad_samples_are_counted_by_the_filter_and_the_rest_goes_all_the_way(bad: Path):
    filtered(bad / "raw", bad / "clean")
    assert json.loads((bad / "clean" / "reports" / "filter.json").read_text())["dropped"] == {
        "bad key": 2,
        "bad caption": 1,
        "duplicate key": 1,
        "empty caption": 1,
        "undecodable": 2,
        "too large": 1,
    }
    packed(bad / "clean", bad / "set")
    embedded(None, bad / "set")
    verified(bad / "set")
    assert sorted(captions(bad / "set")) == sorted([*GOOD, RTL, LONG, "a scene of mined"])
    assert not (bad / "ran").exists()
    assert {path.name for path in bad.iterdir()} == {"raw", "clean", "set"}


def test_bad_samples_are_counted_by_pack_too(bad: Path):
    packed(bad / "raw", bad / "set")
    said = json.loads((bad / "set" / "reports" / "pack.json").read_text())
    assert said["left_out"] == {"no caption": 1, "undecodable": 3}
    embedded(None, bad / "set")
    verified(bad / "set")
    odd = [NUL, RTL, LONG, "a scene of mined", "a scene of ../../up", "a scene of /tmp/absolute"]
    assert sorted(captions(bad / "set")) == sorted([*GOOD[1:], "the key of another", *odd])
    assert not (bad / "ran").exists()
    assert {path.name for path in bad.iterdir()} == {"raw", "set"}


def noise(number: int, plain: bool) -> bytes:
    """A picture whose PNG is large, or, where ``plain``, small."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (2, 2, 3) if plain else (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()


def raw(folder: Path, shards: int = 3) -> Path:
    """Shards of four samples, of which the second takes the most room, at every step and for captions too."""
    for shard in range(shards):
        samples = []
        for i in range(4):
            number, large = 4 * shard + i, shard == 1
            words = " ".join(f"word{number}{j}" for j in range(400)) if large else f"picture {number}"
            samples.append(sample(f"{shard:05}{i:04}", noise(number, not large), caption=words, suffix="png"))
        write_raw(folder, shard, samples)
    return folder


def set_of(folder: Path) -> Path:
    packed(raw(folder / "raw"), folder / "set", "sizes=[64]", "validation=0")
    return folder / "set"


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """What a full disk does: a write ends with an error of the system, in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def tree(folder: Path) -> dict[str, bytes]:
    """Name and content of every file but reports and stats, which tell the time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "reports" not in path.parts and not path.name.endswith("_stats.json")
    }


def finished(folder: Path) -> dict[Path, int]:
    """The shards that have their mark, with the time of their writing."""
    tars = [tar for tar in folder.rglob("*.tar") if tar.exists() and stats_path(tar).exists()]
    return {tar: tar.stat().st_mtime_ns for tar in tars}


def prepared(script: str, folder: Path) -> tuple[Callable[..., None], Path | None, Path]:
    """What to call with the source and the output, for one script."""
    if script == "embed_text":
        return embedded, None, set_of(folder)
    run = {"filter": filtered, "pack": packed}[script]
    return run, raw(folder / "raw"), folder / "out"


SECOND = {  # the shard that takes the most room, and its tar's size without it
    "filter": "00001.tar",
    "pack": "train/images-64/00001.tar",
    "embed_text": "train/text-*/00001.tar",
}


@pytest.mark.parametrize("script", SECOND)
def test_a_full_disk_names_the_file_and_costs_nothing_that_was_finished(tmp_path: Path, script: str):
    overrides = ["sizes=[64]", "validation=0"] if script == "pack" else []
    run, source, whole = prepared(script, tmp_path / "whole")
    run(source, whole, *overrides)
    (large,) = whole.glob(SECOND[script])
    run, source, output = prepared(script, tmp_path / "stopped")
    with no_file_larger_than(large.stat().st_size - 1), pytest.raises(OSError, match="File too large") as stopped:
        run(source, output, *overrides)
    assert stopped.value.errno == errno.EFBIG
    assert stopped.value.filename == str(output / large.relative_to(whole))
    assert not list(output.rglob("*.tmp"))
    assert not (output / large.relative_to(whole)).exists()
    before = finished(output)
    assert output / large.relative_to(whole).with_name("00000.tar") in before
    run(source, output, *overrides)
    assert tree(output) == tree(whole)
    assert {tar: finished(output)[tar] for tar in before} == before  # not written again


@pytest.mark.parametrize("script", SECOND)
def test_a_shard_that_vanishes_is_named_and_costs_nothing_that_was_finished(tmp_path: Path, script: str):
    """A link to nowhere is listed, and gone when it is opened."""
    overrides = ["sizes=[64]", "validation=0"] if script == "pack" else []
    run, source, output = prepared(script, tmp_path)
    tar = (source or output / "train" / "images-64") / "00001.tar"
    aside = tar.rename(tmp_path / "aside.tar")
    tar.symlink_to(tmp_path / "nowhere.tar")
    with pytest.raises(FileNotFoundError) as stopped:
        run(source, output, *overrides)
    assert Path(stopped.value.filename) == tar
    before = finished(output)
    tar.unlink()
    aside.rename(tar)
    run(source, output, *overrides)
    assert len(finished(output)) >= 3
    assert {one: finished(output)[one] for one in before} == before


def test_verification_tells_of_a_shard_that_vanishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = set_of(tmp_path)
    embedded(None, root)
    (root / "train" / "images-64" / "00001.tar").unlink()
    (root / "train" / "images-64" / "00001.tar").symlink_to(tmp_path / "nowhere.tar")
    with pytest.raises(SystemExit) as stopped:
        verified(root)
    assert stopped.value.code == 1
    assert "cannot be read" in capsys.readouterr().out


def test_the_end_of_a_script_on_a_full_disk_is_one_sentence(tmp_path: Path):
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (35_000, 35_000))

    command = [sys.executable, "data_prep/pack.py", f"input={raw(tmp_path / 'raw')}", f"root={tmp_path / 'out'}"]
    command += ["sizes=[64]", "format=png", "shard_size=4", "validation=0", "num_workers=1"]
    done = subprocess.run(command, cwd=REPOSITORY, preexec_fn=limited, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"error: {tmp_path / 'out' / 'train' / 'images-64' / '00001.tar'} cannot be used: File too large: "
        "make room and run the same command again"
    )
    assert "Traceback" not in done.stderr
    assert members(tmp_path / "out" / "train" / "images-64" / "00000.tar")
