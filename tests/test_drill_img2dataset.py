"""img2dataset itself downloads good and awkward pictures; its shards are what the rest of data_prep is made for."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import awkward
import numpy as np
import pyarrow.parquet as pq
import pytest
from awkward import Row
from img2dataset_shards import SHARD, SIZE, download, key, scikit_image_data
from PIL import Image

pytestmark = pytest.mark.drill

Samples = dict[str, dict[str, bytes]]
LOST = [row.file for row in awkward.lost()]


@pytest.fixture(scope="module")
def table() -> list[Row]:
    return awkward.rows(scikit_image_data(), SHARD)


@pytest.fixture(scope="module")
def reencoded(table: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of shards as img2dataset writes them unless told otherwise: every picture a new JPEG."""
    return download(tmp_path_factory.mktemp("img2dataset") / "reencoded", table)


@pytest.fixture(scope="module")
def kept(table: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of shards with ``--skip_reencode``: a JPEG that is small enough keeps its bytes."""
    return download(tmp_path_factory.mktemp("img2dataset") / "kept", table, "--skip_reencode", "True")


@pytest.fixture(scope="module", params=["reencoded", "kept"])
def shards(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def read(folder: Path) -> Samples:
    """Every member of every tar by key and extension, in the order met."""
    samples: Samples = {}
    for tar in sorted(folder.glob("*.tar")):
        with tarfile.open(tar) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                stem, extension = member.name.split(".")
                samples.setdefault(stem, {})[extension] = content.read()
    return samples


def by_file(table: list[Row], samples: Samples) -> dict[str, dict[str, bytes]]:
    """Samples by the name of the file served; of one met twice the first."""
    found: dict[str, dict[str, bytes]] = {}
    for i, row in enumerate(table):
        if (sample := samples.get(key(i))) is not None:
            found.setdefault(row.file, sample)
    return found


def opened(sample: dict[str, bytes]) -> Image.Image:
    picture = Image.open(io.BytesIO(sample["jpg"]))
    assert picture.format == "JPEG"
    return picture


def info(sample: dict[str, bytes]) -> dict[str, Any]:
    return json.loads(sample["json"])


def difference(picture: Image.Image, wanted: Image.Image) -> float:
    """Mean absolute difference in grey levels of 255, at the size of ``wanted``."""
    resized = np.asarray(picture.convert("RGB").resize(wanted.size), dtype=float)
    return float(np.abs(resized - np.asarray(wanted)).mean())


def test_a_shard_is_a_tar_a_table_and_a_mark_of_completion(table, shards):
    count = len(table) // SHARD + 1
    wanted = {f"{i:05}{end}" for i in range(count) for end in (".tar", ".parquet", "_stats.json")}
    assert {file.name for file in shards.iterdir()} == wanted
    for i in range(count):
        stats = json.loads((shards / f"{i:05}_stats.json").read_text())
        rows = table[i * SHARD : (i + 1) * SHARD]
        gone = sum(row.content is None for row in rows)
        lost = sum(row.file in LOST for row in rows) - gone
        assert stats["count"] == len(rows)
        assert (stats["failed_to_download"], stats["failed_to_resize"]) == (gone, lost)
        assert stats["successes"] == stats["status_dict"].get("success", 0) == len(rows) - gone - lost
        written = pq.read_table(shards / f"{i:05}.parquet")
        assert sorted(written["key"].to_pylist()) == [key(i * SHARD + j) for j in range(len(rows))]


def test_the_last_shard_is_an_empty_tar(table, shards):
    assert len(table) % SHARD == len(LOST)
    with tarfile.open(shards / f"{len(table) // SHARD:05}.tar") as archive:
        assert archive.getnames() == []


def test_the_keys_have_gaps_where_a_picture_was_lost(table, shards):
    samples = read(shards)
    assert set(samples) == {key(i) for i, row in enumerate(table) if row.file not in LOST}
    assert all(list(members) == ["jpg", "json", "txt"] for members in samples.values())
    full = {key(i) for i in range(len(table) - len(LOST))}
    assert len(full - set(samples)) == 2, "gaps within full shards too"


def test_the_table_says_why_a_picture_was_lost(table, shards):
    written = [row for file in sorted(shards.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    said = {row["url"].rsplit("/", 1)[1]: row for row in written if row["status"] != "success"}
    assert sorted(said) == sorted(LOST)
    assert said["gone.jpg"]["status"] == "failed_to_download"
    assert said["gone.jpg"]["error_message"].startswith("HTTP Error 404")
    for file in ("truncated.jpg", "page.jpg", "drawing.svg"):
        assert (said[file]["status"], said[file]["error_message"]) == ("failed_to_resize", "Image decoding error")
    assert all(row["width"] is row["original_width"] is row["exif"] is row["sha256"] is None for row in said.values())


def test_a_sample_carries_its_row(table, shards):
    samples = read(shards)
    for i, row in enumerate(table):
        if row.content is None or row.file in LOST:
            continue
        sample, said = samples[key(i)], info(samples[key(i)])
        assert {name: said[name] for name in awkward.SCORES} == awkward.SCORES | row.scores
        assert (said["key"], said["status"], said["error_message"]) == (key(i), "success", None)
        assert said["caption"] == row.caption
        assert sample["txt"].decode() == (row.caption or "")
        assert said["sha256"] == hashlib.sha256(row.content).hexdigest(), "of the bytes downloaded"
        picture = opened(sample)
        assert picture.size == (said["width"], said["height"])
        assert picture.mode in ("RGB", "L")
        shorter = min(said["original_width"], said["original_height"])
        assert min(picture.size) == min(shorter, SIZE)


@pytest.mark.parametrize("file", ["turned.jpg", "turned-small.jpg", "turned.webp", "turned.png"])
def test_a_turned_picture_is_stored_lying(table, shards, file):
    sample = by_file(table, read(shards))[file]
    picture, upright = opened(sample), awkward.upright()[file]
    assert difference(picture, upright) > 20
    assert difference(picture.transpose(Image.Transpose.ROTATE_270), upright) < 2


def test_the_orientation_is_told_by_the_json_alone(table, reencoded):
    samples = by_file(table, read(reencoded))
    for file in ("turned.jpg", "turned-small.jpg", "turned.webp"):
        assert json.loads(info(samples[file])["exif"])["Image Orientation"] == "Rotated 90 CW"
        assert not opened(samples[file]).getexif()
    assert json.loads(info(samples["turned.png"])["exif"]) == {}, "a PNG's orientation is lost"


def test_kept_bytes_tell_the_orientation_too(table, kept):
    samples = by_file(table, read(kept))
    told = {file: opened(samples[file]).getexif().get(0x0112) for file in ("turned-small.jpg", "turned.jpg")}
    assert told == {"turned-small.jpg": awkward.ROTATED_90_CW, "turned.jpg": None}
    assert json.loads(info(samples["turned-small.jpg"])["exif"])["Image Orientation"] == "Rotated 90 CW"


def test_what_keeps_its_bytes(table, kept):
    """JPEGs of at most SIZE on the shorter side; not CMYK, whose header is not taken for a JPEG's."""
    contents = {row.file: row.content for row in table}
    samples = by_file(table, read(kept))
    same = {file for file, sample in samples.items() if sample["jpg"] == contents[file]}
    small = {file for file in samples if file.endswith(".jpg") and _shorter(contents[file]) <= SIZE}
    assert same == small - {"cmyk.jpg"}
    assert {"grey.jpg", "turned-small.jpg", "banner.jpg", "thumbnail.jpg"} <= same


def _shorter(content: bytes | None) -> int:
    assert content is not None
    return min(Image.open(io.BytesIO(content)).size)


def test_modes(table, shards):
    samples = by_file(table, read(shards))
    grey = {"grey.jpg", "one-bit.png", "sixteen-bit.png", "huge-9000.png", "huge-16000.png"}
    grey |= {f"{name}.png" for name in ("brick", "camera", "coins", "grass", "gravel", "moon")}
    assert {file for file, sample in samples.items() if opened(sample).mode == "L"} == grey


def test_sixteen_bits_are_saturated(table, shards):
    assert opened(by_file(table, read(shards))["sixteen-bit.png"]).getextrema() == (255, 255)


@pytest.mark.parametrize("file", ["rgba.png", "la.png"])
def test_what_is_transparent_is_white(table, shards, file):
    picture = np.asarray(opened(by_file(table, read(shards))[file]))
    assert picture[:2].min() >= 250
    assert picture[-1].mean() < 200


def test_a_transparent_colour_of_a_palette_is_white(table, shards):
    contents = {row.file: row.content for row in table}
    content = contents["palette.png"]
    assert content is not None
    original, stored = Image.open(io.BytesIO(content)), opened(by_file(table, read(shards))["palette.png"])
    transparent = np.asarray(original) == original.info["transparency"]
    assert 0 < transparent.mean() < 0.5
    assert np.asarray(stored)[transparent].mean() > 240
    assert np.asarray(stored)[~transparent].mean() < 200


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_left(table, shards, kind):
    contents = {row.file: row.content for row in table}
    content = contents[f"animated.{kind}"]
    assert content is not None
    with Image.open(io.BytesIO(content)) as original:
        assert original.n_frames == 3  # type: ignore[attr-defined]
        first = original.convert("RGB")
    assert difference(opened(by_file(table, read(shards))[f"animated.{kind}"]), first) < 3


def test_sizes(table, shards):
    samples = by_file(table, read(shards))
    said = {file: info(sample) for file, sample in samples.items()}
    for file, size in {"banner.jpg": (3000, 20), "thumbnail.jpg": (40, 30), "pixel.gif": (1, 1)}.items():
        assert opened(samples[file]).size == size
    for side in (9000, 16000):
        huge = said[f"huge-{side}.png"]
        assert (huge["original_width"], huge["original_height"]) == (side, side)
        assert opened(samples[f"huge-{side}.png"]).size == (SIZE, SIZE)
