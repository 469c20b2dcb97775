"""Shards of any pictures into even shards of small ones."""

import io
import json
import pickle
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import awkward
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from imagen.cli import compose
from imagen.data import pixels
from imagen.data.index import PICTURE_FIELDS, read_index
from imagen.data.shards import read_members, stats_path, write_tar
from imagen.data.writer import Entry, sample_row, write_shard
from imagen.errors import UserError
from imagen.files import locate
from imagen.prep.embed_text.command import caption_folders
from imagen.prep.pack.codecs import FORMATS, Codec
from imagen.prep.pack.command import pack
from imagen.prep.pack.plan import Counted, Rules, units
from imagen.prep.pack.shard import PackShard
from imagen.prep.pack.sources import read_promised
from imagen.prep.unfit import Unfit

SIZES = [8, 16, 32]
SHAPES = [(48, 32), (32, 64), (100, 70), (33, 33)]  # (width, height)


def run(source, root, **options):
    plain = {"sizes": SIZES, "format": "png", "shard_size": 4, "validation": 0.3} | options
    overrides = [f"{name}={value}".replace(" ", "") for name, value in plain.items()]
    pack(compose("data_prep/pack", [f"input={source}", f"root={root}", *overrides]))


def entry(number, size=None, shard=0, **more):
    """A sample of its own; ``more`` joins or replaces what its json says."""
    width, height = size or SHAPES[number % len(SHAPES)]
    row = sample_row(f"{shard:05}{number:04}", f"caption {number}", (width, height), (width, height), f"sha {number}")
    return Entry(row | more, awkward.encoded(awkward.scene(width, height, number), "PNG"), "png")


def put(folder, counts, **more):
    """Shards of so many samples each, numbered through."""
    first = 0
    for shard, count in enumerate(counts):
        entries = [entry(i, shard=shard, **more) for i in range(first, first + count)]
        tar = folder / f"{shard:05}.tar"
        write_shard(tar, entries, started=0.0, recipe={"made": "for a test"}, shards=len(counts))
        first += count
    return folder


def by_hand(folder, members, parquet=None, shard=0):
    """A shard as img2dataset leaves it: no index, no recipe."""
    tar = folder / f"{shard:05}.tar"
    write_tar(tar, members)
    if parquet is not None:
        tar.with_suffix(".parquet").parent.mkdir(parents=True, exist_ok=True)
        with tar.with_suffix(".parquet").open("wb") as file:
            pyarrow.parquet.write_table(pyarrow.table(parquet), file)
    stats_path(tar).write_text(json.dumps({"count": len(members), "successes": len(members)}))
    return folder


def members_of(one, **json_changes):
    key = one.row["key"]
    info = json.dumps(one.row | json_changes).encode()
    return [(f"{key}.png", one.picture), (f"{key}.json", info), (f"{key}.txt", one.row["caption"].encode())]


def tars(root, split, size):
    return sorted((locate(root) / split / f"images-{size}").glob("*.tar"), key=lambda tar: tar.name)


def samples(root, split, size, suffix=".png"):
    """key -> (json, picture) of a split."""
    found = {}
    for tar in tars(root, split, size):
        pictures = dict(read_members(tar, suffix))
        for key, info in read_members(tar, ".json"):
            found[key] = (json.loads(info), pictures[key])
    return found


def both(root, size, suffix=".png"):
    return [one for split in ("train", "val") for one in samples(root, split, size, suffix).values()]


def report(root):
    return json.loads((locate(root) / "reports" / "pack.json").read_text())


def array(content):
    return np.array(Image.open(io.BytesIO(content)))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """14 samples of four shapes in shards of 6, 0 and 8, packed in fours."""
    folder = tmp_path_factory.mktemp("packed")
    put(folder / "in", [6, 0, 8])
    run(folder / "in", folder / "root")
    return folder


def test_every_sample_is_packed_once_in_even_shards(packed):
    root = packed / "root"
    found = [info["source_key"] for info, _ in both(root, 8)]
    assert sorted(found) == sorted(entry(i, shard=0 if i < 6 else 2).row["key"] for i in range(14))
    for split in ("train", "val"):
        counts = [len(dict(read_members(tar, ".txt"))) for tar in tars(root, split, 8)]
        assert counts[:-1] == [4] * (len(counts) - 1)
        assert 1 <= counts[-1] <= 4
        assert [tar.name for tar in tars(root, split, 8)] == [f"{i:05}.tar" for i in range(len(counts))]
    assert {name: split["samples"] for name, split in report(root)["splits"].items()} == {
        split: len(samples(root, split, 8)) for split in ("train", "val")
    }


def test_all_sizes_hold_the_same_keys_and_captions(packed):
    for split in ("train", "val"):
        for tar in tars(packed / "root", split, 8):
            assert (
                len({tuple(read_members(packed / "root" / split / f"images-{s}" / tar.name, ".txt")) for s in SIZES})
                == 1
            )


def test_pictures_are_shrunk_whole_and_each_size_is_the_block_mean_of_the_largest(packed):
    sizes = {size: samples(packed / "root", "train", size) for size in SIZES}
    for key, (info, content) in sizes[32].items():
        number = int(info["caption"].split()[1])
        width, height = SHAPES[number % len(SHAPES)]
        assert info["original_width"], info["original_height"] == (width, height)
        assert np.array_equal(array(content), pixels.shrink(awkward.scene(width, height, number), 32))
        for size in SIZES:
            small, picture = sizes[size][key]
            shown = array(picture)
            assert shown.shape[:2] == (small["height"], small["width"])
            assert min(shown.shape[:2]) == size
            assert abs(shown.shape[1] - width * size / min(width, height)) < 1  # not squashed, not cut
        whole = array(content)[: 32 // 4 * 4, : array(content).shape[1] // 4 * 4].astype(float)
        mean = whole.reshape(whole.shape[0] // 4, 4, -1, 4, 3).mean((1, 3))
        assert np.abs(array(sizes[8][key][1])[: mean.shape[0], : mean.shape[1]] - mean).max() <= 0.5


def test_the_index_says_where_each_sample_lies(packed):
    for tar in tars(packed / "root", "train", 16):
        index = read_index(tar, PICTURE_FIELDS)
        assert tar.with_name(f"{tar.stem}_index.npy").exists()
        content = tar.read_bytes()
        pictures = dict(read_members(tar, ".png"))
        for row in index:
            offset, size = row["picture"]
            assert content[offset : offset + size] == pictures[row["key"].decode()]


def test_no_picture_is_on_both_sides(tmp_path):
    put(tmp_path / "in", [30, 30])
    put(tmp_path / "again", [60])  # the same pictures under other keys
    for file in (tmp_path / "again").iterdir():
        file.rename(tmp_path / "in" / file.name.replace("00000", "00002"))
    run(tmp_path / "in", tmp_path / "root", sizes=[8], shard_size=50)
    sides = [
        {info["sha256"] for info, _ in samples(tmp_path / "root", split, 8).values()} for split in ("train", "val")
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 60
    assert 8 <= len(sides[1]) <= 28  # 18 expected
    run(tmp_path / "in", tmp_path / "other", sizes=[8], shard_size=50, seed=1)
    assert {info["sha256"] for info, _ in samples(tmp_path / "other", "val", 8).values()} != sides[1]


def test_without_hashes_the_key_decides(tmp_path):
    put(tmp_path / "in", [20], sha256=None)
    run(tmp_path / "in", tmp_path / "root", sizes=[8])
    keys = [{info["source_key"] for info, _ in samples(tmp_path / "root", s, 8).values()} for s in ("train", "val")]
    assert all(keys)
    assert not keys[0] & keys[1]


@pytest.mark.parametrize(("validation", "expected"), [(0, 0), (5, 5), (13, 13)])
def test_a_number_for_validation(packed, tmp_path, validation, expected):
    run(packed / "in", tmp_path, sizes=[8], validation=validation)
    assert len(samples(tmp_path, "val", 8)) == expected
    assert len(samples(tmp_path, "train", 8)) == 14 - expected
    assert (tmp_path / "val").exists() == (expected > 0)


def test_two_workers_write_what_one_writes(packed, tmp_path, capsys):
    for index in range(2):
        run(packed / "in", tmp_path / "root", worker_index=index, worker_count=2)
        assert (tmp_path / "root" / "reports" / "pack.json").exists() == (index == 1)
    assert "other workers are not done yet" in capsys.readouterr().out
    files = [path.relative_to(packed / "root") for path in (packed / "root").rglob("0*")]
    assert len(files) == len(list((tmp_path / "root").rglob("0*"))) > 20
    for file in files:
        if not file.name.endswith("_stats.json"):  # they tell the time
            assert (tmp_path / "root" / file).read_bytes() == (packed / "root" / file).read_bytes(), file
    one, two = report(packed / "root"), report(tmp_path / "root")
    assert one | {"config": None} == two | {"config": None}


def test_the_report_waits_for_what_is_of_another_making(packed, tmp_path):
    run(packed / "in", tmp_path, sizes=[8])
    before = report(tmp_path)
    run(packed / "in", tmp_path, sizes=[8], format="jpg", worker_index=1, worker_count=2)
    assert report(tmp_path) == before
    run(packed / "in", tmp_path, sizes=[8], format="jpg", worker_index=0, worker_count=2)
    assert report(tmp_path)["config"]["format"] == "jpg"


def times(root):
    return {path.relative_to(root): path.stat().st_mtime_ns for path in root.rglob("*.tar")}


def test_again_does_nothing_and_a_stopped_shard_is_redone_at_every_size(packed, tmp_path, capsys):
    root = tmp_path / "root"
    run(packed / "in", root)
    before, said = times(root), report(root)
    run(packed / "in", root)
    assert times(root) == before
    assert "shards written now: 0" in capsys.readouterr().out
    stats_path(root / "train" / "images-16" / "00001.tar").unlink()
    (root / "train" / "images-16" / "00001.tar").write_bytes(b"cut off")
    run(packed / "in", root)
    changed = {str(path) for path, time in times(root).items() if before[path] != time}
    assert changed == {f"train/images-{size}/00001.tar" for size in SIZES}
    assert report(root) == said
    for size in SIZES:
        name = f"train/images-{size}/00001.tar"
        assert (root / name).read_bytes() == (packed / "root" / name).read_bytes()


def test_what_the_input_or_the_config_changed_is_redone(tmp_path):
    source, root = put(tmp_path / "in", [8, 8]), tmp_path / "root"
    options = {"sizes": [8], "validation": 0, "shard_size": 4}
    run(source, root, **options)
    before = times(root)
    entries = [entry(i, shard=1, caption="another") for i in range(8, 16)]
    write_shard(source / "00001.tar", entries, started=0.0, recipe={}, shards=2)
    run(source, root, **options)
    assert [str(path)[-9:] for path, time in times(root).items() if before[path] == time] == ["00000.tar", "00001.tar"]
    assert Counter(info["caption"] for info, _ in both(root, 8))["another"] == 8
    before = times(root)
    for change in ({"format": "webp-lossless"}, {"seed": 4}, {"sizes": [8, 16]}):
        options |= change
        run(source, root, **options)
        assert all(before[path] != time for path, time in times(root).items() if path in before)
        before = times(root)
    run(source, root, **options | {"shard_size": 10})
    assert [tar.name for tar in tars(root, "train", 8)] == ["00000.tar", "00001.tar"]
    run(source, root, **options | {"shard_size": 10, "validation": 4})
    run(source, root, **options | {"shard_size": 10})
    assert not tars(root, "val", 8)
    assert len(both(root, 8, ".webp")) == 16


def test_behind_urls():
    source, root = locate("memory://pack-in"), "memory://pack-root"
    put(source, [5])
    run("memory://pack-in", root, shard_size=3, validation=1)
    assert len(both(root, 8)) == len(both(root, 32)) == 5
    assert report(root)["packed"] == 5
    run("memory://pack-in", root, shard_size=3, validation=1)


def test_pictures_too_small_for_the_largest_size_are_in_no_set(tmp_path, capsys):
    entries = [entry(0, (32, 32)), entry(1, (31, 90)), entry(2, (90, 31)), entry(3, (40, 33))]
    write_shard(tmp_path / "in" / "00000.tar", entries, started=0.0, recipe={}, shards=1)
    run(tmp_path / "in", tmp_path / "root", validation=0)
    assert sorted(info["caption"] for info, _ in both(tmp_path / "root", 8)) == ["caption 0", "caption 3"]
    assert report(tmp_path / "root")["left_out"] == {"too small": 2}
    assert report(tmp_path / "root")["read"] == 4
    out = capsys.readouterr().out
    assert "2 of 4 samples packed; left out: 2 too small" in out
    assert f"next: python data_prep/embed_text.py root={tmp_path / 'root'}" in out


SIDEWAYS = json.dumps({"Image Orientation": "Rotated 90 CW", "Image Model": "X100"})


def turned_entry(number, tagged, said):
    """A scene of 48 x 33, stored lying."""
    upright = awkward.scene(48, 33, number)
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    content = awkward.turned(upright, "PNG") if tagged else awkward.encoded(lying, "PNG")
    row = sample_row(f"{number:09}", f"caption {number}", (33, 48), (330, 480), f"{number}")
    return Entry(row | {"exif": SIDEWAYS if said else '{"Image Model": "X100"}'}, content, "png")


@pytest.mark.parametrize("parquet", [True, False])
def test_pictures_are_upright_and_their_json_says_so(tmp_path, parquet):
    cases = [turned_entry(0, tagged=True, said=True), turned_entry(1, tagged=False, said=True)]
    write_shard(tmp_path / "in" / "00000.tar", cases, started=0.0, recipe={}, shards=1)
    if not parquet:
        (tmp_path / "in" / "00000.parquet").unlink()
    run(tmp_path / "in", tmp_path / "root", sizes=[33], validation=0)
    for number, (info, content) in enumerate(both(tmp_path / "root", 33)):
        assert np.array_equal(array(content), np.array(awkward.scene(48, 33, number)))
        assert (info["width"], info["height"]) == (48, 33)
        assert (info["original_width"], info["original_height"]) == (480, 330)
        assert json.loads(info["exif"]) == {"Image Model": "X100"}


def test_the_plan_knows_sizes_upright(tmp_path):
    cases = [turned_entry(0, tagged=True, said=True), turned_entry(1, tagged=False, said=True)]
    cases += [turned_entry(2, tagged=True, said=False)]
    unknown = [Entry(one.row | {"width": None, "height": None}, one.picture, one.suffix) for one in cases]
    write_shard(tmp_path / "00000.tar", cases[:2], started=0.0, recipe={}, shards=1)
    write_shard(tmp_path / "00001.tar", unknown, started=0.0, recipe={}, shards=1)
    for name, count in (("00000.tar", 2), ("00001.tar", 3)):
        for _ in range(2):
            promised = read_promised(tmp_path / name)
            assert promised.width.tolist() == [48] * count
            assert promised.height.tolist() == [33] * count
            (tmp_path / name).with_suffix(".parquet").unlink(missing_ok=True)


def test_captions_and_all_metadata_are_kept(tmp_path):
    ours = {"captions": ["one", "two"], "top_caption": "a", "all_captions": ["a", "b"], "punsafe": 0.01, "hash": 2**70}
    odd = {0: "before\0after", 1: "תמונה של חוף", 2: "word " * 20_000, 3: "half a \ud83d pair"}
    entries = [entry(i, caption=caption, url=f"http://x/{i}", **ours) for i, caption in odd.items() if i < 3]
    write_shard(tmp_path / "in" / "00000.tar", entries, started=0.0, recipe={}, shards=1)
    last = entry(3, shard=1)
    content = [
        (f"{last.row['key']}.png", last.picture),
        (f"{last.row['key']}.json", json.dumps(last.row | {"caption": odd[3]}).encode()),
    ]
    by_hand(tmp_path / "in", content, shard=1)
    run(tmp_path / "in", tmp_path / "root", validation=0)
    found = [info for info, _ in both(tmp_path / "root", 8)]
    assert [info["caption"] for info in found] == [odd[0], odd[1], odd[2], "half a ? pair"]
    for i, info in enumerate(found[:3]):
        assert {name: info[name] for name in ours} == ours
        assert (info["url"], info["sha256"]) == (f"http://x/{i}", f"sha {i}")
        assert (info["source_shard"], info["source_key"]) == ("00000", entries[i].row["key"])
        assert info["key"] == f"00000{i}"
    texts = [caption.decode() for _, caption in read_members(tars(tmp_path / "root", "train", 8)[0], ".txt")]
    assert texts == [info["caption"] for info in found]


def test_img2datasets_own_shards(tmp_path):
    """Keys with gaps, rows of what failed, no index, no order."""
    kept = [entry(i) for i in (5, 2, 9)]
    rows = [one.row for one in kept]
    rows += [
        entry(i).row | {"status": "failed_to_download", "error_message": "404", "width": None, "height": None}
        for i in (0, 1)
    ]
    names = list(rows[0])
    columns = {name: [row[name] for row in rows] for name in names}
    by_hand(tmp_path / "in", [member for one in kept for member in members_of(one)], columns)
    run(tmp_path / "in", tmp_path / "root", validation=0)
    assert [info["source_key"] for info, _ in both(tmp_path / "root", 8)] == [one.row["key"] for one in kept]
    assert report(tmp_path / "root")["left_out"] == {}


@pytest.mark.parametrize("how", ["none", "broken", "no keys", "no sizes"])
def test_a_parquet_of_no_use(tmp_path, how):
    put(tmp_path / "in", [5])
    parquet = tmp_path / "in" / "00000.parquet"
    if how == "none":
        parquet.unlink()
    elif how == "broken":
        parquet.write_bytes(parquet.read_bytes()[:-100])
    else:
        table = pyarrow.parquet.read_table(parquet)
        pyarrow.parquet.write_table(table.drop(["key"] if how == "no keys" else ["width"]), parquet)
    run(tmp_path / "in", tmp_path / "root", validation=0)
    assert [info["caption"] for info, _ in both(tmp_path / "root", 8)] == [f"caption {i}" for i in range(5)]


def test_what_cannot_be_read_is_counted(tmp_path):
    entries = [entry(i) for i in range(8)]
    members = {one.row["key"]: members_of(one) for one in entries}
    keys = list(members)
    members[keys[0]][0] = (f"{keys[0]}.png", b"<html>")
    members[keys[1]][0] = (f"{keys[1]}.png", entries[1].picture[:100])
    members[keys[2]][1] = (f"{keys[2]}.json", b"{" * 100)
    members[keys[3]][2] = (f"{keys[3]}.txt", b" ")
    members[keys[4]][0] = (f"{keys[4]}.png", b"")
    members[keys[5]][0] = (f"{keys[5]}.png", awkward.encoded(awkward.scene(31, 40, 0), "PNG"))  # its json says more
    members[keys[6]].append((f"{keys[6]}.pickle", b"cposix\nsystem\n(S'false'\ntR."))
    columns = {name: [one.row[name] for one in (*entries, entry(8), entry(7))] for name in entries[0].row}
    outside = [("../../evil.txt", b"away"), ("/etc/evil.json", b"{}")]
    by_hand(tmp_path / "in", [member for own in members.values() for member in own] + outside, columns)
    run(tmp_path / "in", tmp_path / "root", validation=0, shard_size=20)
    assert [info["caption"] for info, _ in both(tmp_path / "root", 32)] == ["caption 6", "caption 7"]
    assert report(tmp_path / "root")["left_out"] == {
        "duplicate key": 1,
        "json cannot be read": 1,
        "missing from the tar": 2,  # the empty picture, and the one that the parquet alone knows
        "no caption": 1,
        "too small": 1,
        "undecodable": 2,
    }
    rows = pyarrow.parquet.read_table(tars(tmp_path / "root", "train", 8)[0].with_suffix(".parquet")).to_pylist()
    lost = {row["source_key"]: row["error_message"] for row in rows if row["error_message"]}
    assert lost[keys[0]] == lost[keys[1]] == "undecodable"
    assert not list(tmp_path.rglob("evil*"))


def test_a_tar_cut_or_changed_anywhere_costs_its_own_samples_alone(tmp_path):
    put(tmp_path / "in", [6])
    tar = tmp_path / "in" / "00000.tar"
    content = tar.read_bytes()
    (tmp_path / "in" / "00000_index.npy").unlink()
    rng = random.Random(0)
    for i in range(6):
        place = rng.randrange(len(content))
        tar.write_bytes(
            content[:place] if i % 2 else content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        )
        run(tmp_path / "in", tmp_path / f"root{i}", validation=0, sizes=[8])
        said = report(tmp_path / f"root{i}")
        assert said["read"] == 6
        assert said["packed"] == len(both(tmp_path / f"root{i}", 8)) == 6 - sum(said["left_out"].values())


def test_shards_without_their_mark_are_named(tmp_path, capsys):
    put(tmp_path / "in", [4, 4])
    stats_path(tmp_path / "in" / "00001.tar").unlink()
    run(tmp_path / "in", tmp_path / "root", sizes=[8])
    assert "passed over, without 00001_stats.json: 00001.tar" in capsys.readouterr().out
    assert report(tmp_path / "root")["unfinished"] == ["00001.tar"]
    assert report(tmp_path / "root")["packed"] == 4


@pytest.mark.parametrize("asked", [[0.5, 1, 2], 2.0])
def test_buckets_have_one_shape_a_shard_at_every_size(tmp_path, asked):
    sizes = [(48, 96), (100, 45), (64, 70), (64, 64), (120, 64), (40, 40), (64, 129), (47, 200)]
    entries = [entry(i, size) for i, size in enumerate(sizes)]
    write_shard(tmp_path / "in" / "00000.tar", entries, started=0.0, recipe={}, shards=1)
    run(tmp_path / "in", tmp_path / "root", sizes=[16, 32], bucket_stride=4, buckets=asked, validation=0, shard_size=2)
    folder = tmp_path / "root" / "train"
    assert sorted(path.name for path in folder.iterdir()) == ["images-16-buckets", "images-32-buckets"]
    found, ratios = [], {}
    for tar in sorted((folder / "images-32-buckets").glob("*.tar")):
        small = folder / "images-16-buckets" / tar.name
        shapes = [json.loads(stats_path(one).read_text())["shape"] for one in (small, tar)]
        assert shapes[1] == [2 * side for side in shapes[0]]
        assert all(side % 4 == 0 for side in shapes[0])
        for one, shape in zip((small, tar), shapes, strict=True):
            for _, content in read_members(one, ".png"):
                assert array(content).shape[:2] == tuple(shape)
        for key, content in read_members(tar, ".json"):
            info = json.loads(content)
            number = int(info["caption"].split()[1])
            found.append(number)
            ratios[number] = shapes[1]
            expected = pixels.cover(awkward.scene(*sizes[number], number), *shapes[1])
            assert np.array_equal(array(dict(read_members(tar, ".png"))[key]), expected)
    assert sorted(found) == list(range(8))
    assert ratios[0][0] > ratios[2][0]  # tall
    assert ratios[1][1] > ratios[2][1]  # wide
    assert ratios[2] == ratios[3] == ratios[5] == [32, 32]
    assert sum(report(tmp_path / "root")["buckets"].values()) == 8


def test_a_picture_must_cover_its_bucket(tmp_path):
    entries = [entry(0, (44, 22)), entry(1, (45, 23)), entry(2, (48, 24))]  # the shape is 48 x 24
    write_shard(tmp_path / "in" / "00000.tar", entries, started=0.0, recipe={}, shards=1)
    run(tmp_path / "in", tmp_path / "root", sizes=[32], buckets="[1,2]", bucket_stride=4, validation=0)
    assert report(tmp_path / "root")["left_out"] == {"too small": 3 - report(tmp_path / "root")["packed"]}
    for info, content in [
        (json.loads(info), content)
        for tar in (tmp_path / "root" / "train" / "images-32-buckets").glob("*.tar")
        for (_, info), (_, content) in zip(read_members(tar, ".json"), read_members(tar, ".png"), strict=True)
    ]:
        assert (info["width"], info["height"]) == array(content).shape[1::-1]


@pytest.mark.parametrize("format", list(FORMATS))
def test_formats(format):
    picture = np.array(awkward.scene(40, 30, 0))
    content = Codec(format, 95).encode(picture)
    opened = Image.open(io.BytesIO(content))
    assert opened.format == {"jpg": "JPEG", "webp": "WEBP", "webp-lossless": "WEBP", "png": "PNG"}[format]
    error = np.abs(np.array(opened.convert("RGB")).astype(int) - picture)
    assert error.max() == 0 if format in ("png", "webp-lossless") else 0 < error.mean() < 8
    if format == "jpg":
        assert opened.layer == [("\x01", 1, 1, 0)] or [layer[1:3] for layer in opened.layer] == [(1, 1)] * 3
        assert len(Codec(format, 50).encode(picture)) < len(content)


def test_what_a_format_cannot_hold_is_left_out(tmp_path):
    with pytest.raises(Unfit, match="cannot be encoded"):
        Codec("webp", 90).encode(np.zeros((8, 16_400, 3), dtype=np.uint8))
    write_shard(
        tmp_path / "in" / "00000.tar", [entry(0, (16_400, 8)), entry(1, (9, 8))], started=0.0, recipe={}, shards=1
    )
    run(tmp_path / "in", tmp_path / "root", sizes=[8], format="webp", validation=0)
    assert report(tmp_path / "root")["left_out"] == {"cannot be encoded": 1}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"sizes": []}, "sizes="),
        ({"sizes": [8, 8]}, "different numbers"),
        ({"sizes": [0]}, "sizes="),
        ({"shard_size": 0}, "shard_size=0 must"),
        ({"validation": 1.5}, "whole number"),
        ({"validation": 1.0}, "validation=1.0 must be a share below 1 or a whole number"),
        ({"validation": 1000}, "validation=1000 leaves no sample to train on"),
        ({"validation": -1}, "validation=-1"),
        ({"format": "gif"}, "format=gif must be one of jpg"),
        ({"quality": 0}, "quality=0"),
        ({"buckets": "[0,1]"}, "buckets="),
        ({"buckets": "wide"}, "buckets=wide"),
        ({"buckets": 0.5}, "buckets=0.5"),
        ({"buckets": 2, "sizes": [12, 32]}, "whole multiples"),
        ({"buckets": 2, "bucket_stride": 3}, "bucket_stride=3"),
        ({"sizes": [512]}, "has no sample for sizes=.*too small"),
    ],
)
def test_mistakes_are_told_in_one_sentence(packed, tmp_path, option, words):
    with pytest.raises(UserError, match=words):
        run(packed / "in", tmp_path / "root", **option)
    assert not list(tmp_path.rglob("*.tar"))


def test_nothing_is_mixed_with_what_is_there(packed, tmp_path):
    put(tmp_path / "train" / "images-8", [2])
    before = times(tmp_path)
    with pytest.raises(UserError, match="written by another program"):
        run(packed / "in", tmp_path, sizes=[8])
    with pytest.raises(UserError, match="would not have the keys"):
        run(packed / "in", tmp_path, sizes=[16])
    with pytest.raises(UserError, match="would not have the keys"):
        run(packed / "in", tmp_path, sizes=[8], buckets=2)
    assert times(tmp_path) == before


def test_units_cut_every_group_evenly_whatever_the_shards_hold():
    rng = np.random.default_rng(0)
    rules = Rules(8, ((8, 8), (8, 16)), 0, 0)
    counts = rng.integers(0, 9, (40, rules.groups)) * rng.integers(0, 2, (40, 1))
    tars = [Path(f"{i:05}.tar") for i in range(40)]
    counted = [Counted(i, f"digest {i}", row, Counter()) for i, row in enumerate(counts)]
    made = units(tars, counted, rules, 7)
    seen = Counter()
    for unit in made:
        size = sum(part.last - part.first for part in unit.parts)
        assert size == 7 or unit is [one for one in made if one.group == unit.group][-1]
        for part in unit.parts:
            assert part.digest == f"digest {int(part.tar.stem)}"
            seen.update((part.tar.stem, unit.group, i) for i in range(part.first, part.last))
    assert set(seen.values()) == {1}
    assert len(seen) == counts.sum()
    for split in ("train", "val"):
        own = [unit for unit in made if unit.split == split]
        assert [unit.number for unit in own] == list(range(len(own)))
        assert {unit.shards for unit in own} == {len(own)}


def test_what_other_processes_are_given_survives_the_way_there(packed):
    rules = Rules(8, ((8, 8), (8, 16)), 0, 7)
    task = PackShard(locate("memory://root"), (8, 16), rules, Codec("jpg", 95), 4)
    tars = [packed / "in" / "00000.tar"]
    (unit, *_) = units(tars, [Counted(0, "digest", np.array([3, 0, 0, 0]), Counter())], rules, 4)
    sent_task, sent_unit = pickle.loads(pickle.dumps((task, unit)))
    assert sent_unit == unit
    assert sent_task.recipe(sent_unit) == task.recipe(unit)
    assert sent_task.tars(unit) == task.tars(unit)


def test_the_script_as_a_user_runs_it(packed, tmp_path):
    script = Path(__file__).parents[1] / "data_prep" / "pack.py"
    options = ["sizes=[8,16]", "shard_size=4", "validation=2", "buckets=[0.5,1,2]"]
    command = [sys.executable, script, f"input={packed / 'in'}", f"root={tmp_path / 'root'}", *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "14 of 14 samples packed" in result.stdout
    assert "val: 2 samples" in result.stdout
    val = tmp_path / "root" / "val"
    assert sorted(path.name for path in val.iterdir()) == ["images-16-buckets", "images-8-buckets"]
    found = caption_folders(compose("data_prep/embed_text", [f"root={tmp_path / 'root'}"]))
    assert found["val"] == val / "images-8-buckets"


def test_input_that_comes_or_goes_redoes_only_what_it_changes(tmp_path):
    source, root = put(tmp_path / "in", [8, 6]), tmp_path / "root"
    options = {"sizes": [8, 16], "validation": 0}
    run(source, root, **options)
    before = times(root)
    for file in put(tmp_path / "more", [8, 6, 6]).glob("00002*"):
        file.rename(source / file.name)
    run(source, root, worker_index=1, worker_count=2, **options)
    assert report(root)["packed"] == 14  # another worker's shards do not yet say of how many they are
    run(source, root, **options)
    kept = {path.name for path, time in before.items() if times(root)[path] == time}
    assert kept == {"00000.tar", "00001.tar", "00002.tar"}
    assert report(root)["packed"] == 20
    run(source, tmp_path / "fresh", **options)
    for file in (tmp_path / "fresh").rglob("0*"):
        if not file.name.endswith("_stats.json"):  # they tell the time
            assert (root / file.relative_to(tmp_path / "fresh")).read_bytes() == file.read_bytes()
    assert {json.loads(file.read_text())["shards"] for file in root.rglob("0*_stats.json")} == {5}
    before = times(root)
    for file in source.glob("0000[12]*"):  # eight are left, two whole shards
        file.unlink()
    run(source, root, **options)
    assert times(root) == {path: time for path, time in before.items() if path.name < "00002.tar"}
    assert {json.loads(file.read_text())["shards"] for file in root.rglob("0*_stats.json")} == {2}


@pytest.mark.parametrize("format", ["TIFF", "ICO", "BMP", "GIF"])
def test_what_the_loader_does_not_open_is_not_opened(tmp_path, format):
    content = io.BytesIO()
    Image.new("RGB", (32, 32)).save(content, format)
    unknown = Entry(entry(0).row | {"width": None, "height": None}, content.getvalue(), "png")
    write_shard(tmp_path / "00000.tar", [unknown], started=0.0, recipe={}, shards=1)
    assert read_promised(tmp_path / "00000.tar").width.tolist() == [0]
