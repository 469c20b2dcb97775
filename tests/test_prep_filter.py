"""The filter over whole sets: what is written, by how many workers, and what is done again."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from raw_shards import encoded, members, sample, scene, write_raw
from upath import UPath

from imagen.cli import compose
from imagen.data import pixels
from imagen.data.index import PICTURE_FIELDS, read_index, scan
from imagen.data.shards import write_tar
from imagen.data.writer import read_stats, say_shards, write_shard
from imagen.errors import UserError
from imagen.prep.filter import write as write_module
from imagen.prep.filter.command import filter_set
from imagen.prep.filter.look import Look, source_of

ROOT = Path(__file__).parents[1]
TIMES = {"start_time", "end_time", "duration"}


def run(folder, output, *overrides):
    safety = [] if any(one.startswith("safety=") for one in overrides) else ["safety=none"]
    filter_set(compose("data_prep/filter", [f"input={folder}", f"output={output}", *safety, *overrides]))


def report(output):
    return json.loads((output / "reports" / "filter.json").read_text())


def reasons(output):
    """Of every sample its reason, or "kept"."""
    rows = {}
    for path in sorted(path for path in output.iterdir() if path.name.endswith(".parquet")):
        with path.open("rb") as file:
            table = pq.read_table(file).to_pylist()
        rows |= {row["key"]: row["error_message"] or "kept" for row in table}
    return rows


def picture(seed, width=320, height=288, **options):
    return encoded(scene(width, height, seed), **options)


def flat(colour=(255, 255, 255)):
    return encoded(Image.new("RGB", (300, 300), colour), "PNG")


def small_set(folder):
    """Three shards of twelve: eight good ones, and four that go."""
    for shard in range(3):
        keys = [f"{shard:05}{i:04}" for i in range(12)]
        good = [sample(key, picture(100 * shard + i), punsafe=0.01 * i) for i, key in enumerate(keys[:8])]
        bad = [
            sample(keys[8], picture(1, 200, 300)),
            sample(keys[9], picture(5000 + shard), caption="Image not available"),
            sample(keys[10], picture(7777, quality=90)),  # the same in every shard
            sample(keys[11], flat(), suffix="png"),
        ]
        write_raw(folder, shard, [*good, *bad])
    return folder


def tree(folder):
    """Name and content of every file; of stats all but the times."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name.endswith("_stats.json"):
            content = {name: value for name, value in json.loads(content).items() if name not in TIMES}
        found[str(path.relative_to(folder))] = content
    return found


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_set_is_filtered_into_shards_of_the_contract(tmp_path, capsys):
    raw, clean = small_set(tmp_path / "raw"), tmp_path / "clean"
    run(raw, clean, "max_caption_repeats=2")
    went = {8: "too small", 9: "repeated caption", 11: "near-constant"}
    expected = {f"{shard:05}{i:04}": went.get(i, "kept") for shard in range(3) for i in range(12)}
    expected |= {"000010010": "duplicate", "000020010": "duplicate"}
    assert reasons(clean) == expected
    tar = clean / "00000.tar"
    source, kept = members(raw / "00000.tar"), members(tar)
    assert kept["000000000.jpg"] == source["000000000.jpg"]  # to the byte
    assert kept["000000000.txt"] == source["000000000.txt"]
    info = json.loads(kept["000000000.json"])
    assert (info["width"], info["height"], info["caption"]) == (320, 288, "a scene of 000000000")
    assert info["url"] == "http://127.0.0.1/000000000"
    assert np.array_equal(read_index(tar, PICTURE_FIELDS), scan(tar, PICTURE_FIELDS))
    summary = report(clean)
    assert (summary["samples"], summary["kept"], summary["lost"]) == (36, 25, 0)
    dropped = {"near-constant": 3, "repeated caption": 3, "too small": 3, "duplicate": 2}
    assert summary["dropped"] == dropped
    assert list(summary["dropped"]) == list(dropped)  # the commonest first
    assert summary["config"]["max_caption_repeats"] == 2
    with Image.open(clean / "reports" / "filter.png") as sheet:
        assert sheet.width > 3 * 128
    assert "25 of 36 samples kept" in capsys.readouterr().out


def test_captions_that_repeat_go_with_all_their_pictures(tmp_path):
    many = [sample(f"{i:09}", picture(i), caption="Image  not\navailable") for i in range(3)]
    few = [sample(f"{i:09}", picture(i), caption="a house") for i in range(3, 5)]
    write_raw(tmp_path / "raw", 0, many[:2] + few)
    write_raw(tmp_path / "raw", 1, [many[2], sample("000000009", picture(9), caption="IMAGE not available")])
    run(tmp_path / "raw", tmp_path / "clean", "max_caption_repeats=3")
    assert report(tmp_path / "clean")["dropped"] == {"repeated caption": 4}
    run(tmp_path / "raw", tmp_path / "clean", "max_caption_repeats=4")
    assert report(tmp_path / "clean")["dropped"] == {}


def test_of_copies_the_largest_stays_and_a_dropped_one_takes_none_with_it(tmp_path):
    large = scene(640, 576, 5)
    copies = [large.resize((320, 288)), large, large.resize((480, 432)), large.resize((200, 180))]
    write_raw(
        tmp_path / "raw", 0, [sample(f"{i:09}", encoded(copy, "PNG"), suffix="png") for i, copy in enumerate(copies)]
    )
    run(tmp_path / "raw", tmp_path / "clean")
    assert list(reasons(tmp_path / "clean").values()) == ["kept", "duplicate", "duplicate", "too small"]
    assert "000000001.png" in members(tmp_path / "clean" / "00000.tar")


def test_again_does_nothing(tmp_path, monkeypatch, capsys):
    raw, clean = small_set(tmp_path / "raw"), tmp_path / "clean"
    run(raw, clean)
    before = stamps(clean)
    monkeypatch.setattr(Look, "__call__", lambda *_: pytest.fail("looked again"))
    monkeypatch.setattr(write_module.Write, "__call__", lambda *_: pytest.fail("written again"))
    capsys.readouterr()
    run(raw, clean)
    assert stamps(clean) == before
    assert (
        f"{clean}: shards written now: 0, there already: {len(list(clean.glob('*.tar')))}\n" in capsys.readouterr().out
    )


def test_a_set_without_the_score_that_was_picked_is_told(tmp_path, capsys):
    write_raw(tmp_path / "raw", 0, [sample("000000000", picture(300, 300, 1))])
    run(tmp_path / "raw", tmp_path / "clean", "safety=punsafe", "safety.field=another")
    assert "every sample counts as unsafe, as do all without the score" in capsys.readouterr().out
    run(tmp_path / "raw", tmp_path / "clean", "safety=none")
    assert "unsafe" not in capsys.readouterr().out


def test_a_changed_threshold_opens_no_picture_and_writes_only_the_shards_that_differ(tmp_path, monkeypatch):
    raw, clean = small_set(tmp_path / "raw"), tmp_path / "clean"
    write_raw(raw, 3, [sample("000030000", picture(900, 600, 560))])
    run(raw, clean)
    before = stamps(clean)
    monkeypatch.setattr("imagen.prep.filter.look.see", lambda *_: pytest.fail("looked again"))
    run(raw, clean, "safety=punsafe", "safety.threshold=0.035", "min_size=280")
    after = stamps(clean)
    assert after[clean / "00000.tar"] != before[clean / "00000.tar"]
    assert set(reasons(clean).values()) >= {"unsafe"}
    fresh = tmp_path / "fresh"
    monkeypatch.undo()
    run(raw, fresh, "safety=punsafe", "safety.threshold=0.035", "min_size=280")
    assert tree(fresh) == tree(clean)
    run(raw, clean, "safety=none", "min_size=500")
    assert reasons(clean)["000030000"] == "kept"


def test_a_shard_that_nothing_changes_for_is_not_written_again(tmp_path):
    raw, clean = small_set(tmp_path / "raw"), tmp_path / "clean"
    write_raw(raw, 3, [sample("000030000", picture(900, 600, 560))])
    run(raw, clean)
    before = stamps(clean)
    run(raw, clean, "min_size=300")
    after = stamps(clean)
    assert after[clean / "00003.tar"] == before[clean / "00003.tar"]
    assert after[clean / "00000.tar"] != before[clean / "00000.tar"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("phase", ["see", "merge", "encode", "write_json"])
def test_killed_anywhere_and_run_again_it_ends_the_same(tmp_path, monkeypatch, phase):
    raw, clean, fresh = small_set(tmp_path / "raw"), tmp_path / "clean", tmp_path / "fresh"
    lying = encoded(scene(320, 288, 50).convert("L"))
    write_raw(raw, 3, [sample("000030000", lying)])
    run(raw, fresh)
    place = {
        "see": "imagen.prep.filter.look.see",
        "merge": "imagen.prep.filter.duplicates.judge",
        "encode": "imagen.prep.filter.write.encode",
        "write_json": "imagen.data.writer.write_json",
    }[phase]
    calls = iter(range(100))
    name, module = place.rpartition(".")[2], sys.modules[place.rpartition(".")[0]]
    real = getattr(module, name)

    def dying(*arguments):
        if next(calls) == (14 if phase == "see" else 2 if phase == "write_json" else 0):
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(place, dying)
    with pytest.raises(Killed):
        run(raw, clean)
    monkeypatch.undo()
    run(raw, clean)
    assert tree(clean) == tree(fresh)


def test_two_workers_write_what_one_does(tmp_path, capsys):
    raw, one, two = small_set(tmp_path / "raw"), tmp_path / "one", tmp_path / "two"
    run(raw, one)
    capsys.readouterr()
    run(raw, two, "worker_index=0", "worker_count=2")
    assert "shards still missing: 1)" in capsys.readouterr().out
    assert not list(two.glob("*.tar"))
    run(raw, two, "worker_index=1", "worker_count=2")  # the last to look goes on
    assert "shards still missing: 2)" in capsys.readouterr().out
    assert not (two / "reports" / "filter.json").exists()
    run(raw, two, "worker_index=0", "worker_count=2")
    assert tree(one) == tree(two)


def test_processes_write_what_one_does(tmp_path):
    raw, one, two = small_set(tmp_path / "raw"), tmp_path / "one", tmp_path / "two"
    run(raw, one)
    run(raw, two, "num_workers=2")
    assert tree(one) == tree(two)


def test_a_source_made_anew_is_looked_at_again(tmp_path):
    write_raw(tmp_path / "raw", 0, [sample("000000000", picture(0))])
    run(tmp_path / "raw", tmp_path / "clean")
    write_raw(tmp_path / "raw", 0, [sample("000000000", picture(1)), sample("000000001", picture(2))], start_time=2.0)
    run(tmp_path / "raw", tmp_path / "clean")
    assert report(tmp_path / "clean")["kept"] == 2
    assert members(tmp_path / "clean" / "00000.tar")["000000000.jpg"] == picture(1)


def test_from_a_bucket_into_a_bucket(tmp_path):
    raw, clean = UPath("memory://raw-set"), UPath("memory://clean-set")
    local = small_set(tmp_path / "raw")
    for path in local.iterdir():
        (raw / path.name).write_bytes(path.read_bytes())
    run(raw, clean)
    run(local, tmp_path / "clean")
    for name in ("00000.tar", "00002.parquet", "00001_index.npy"):
        assert (clean / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()
    assert report(clean) == report(tmp_path / "clean")
    assert Image.open(io.BytesIO((clean / "reports" / "filter.png").read_bytes())).width > 100
    run(raw, clean)


def test_unfinished_and_damaged_tars_are_named(tmp_path, capsys):
    raw, clean = small_set(tmp_path / "raw"), tmp_path / "clean"
    (raw / "00001_stats.json").unlink()
    whole = (raw / "00002.tar").read_bytes()
    (raw / "00002.tar").write_bytes(whole[: len(whole) // 2])
    run(raw, clean)
    summary = report(clean)
    assert summary["unfinished"] == ["00001.tar"]
    assert summary["damaged"] == ["00002"]
    assert summary["lost"] + summary["samples"] == 24
    assert 0 < summary["lost"] < 12
    out = capsys.readouterr().out
    assert "without _stats.json: 00001.tar" in out
    assert "lost in damaged tars: 00002" in out


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 700, 5000, 20_000, -600, -1])
def test_a_tar_cut_anywhere_gives_what_is_whole_of_it(tmp_path, cut):
    tar = write_raw(tmp_path / "raw", 0, [sample(f"{i:09}", picture(i)) for i in range(4)])
    tar.write_bytes(tar.read_bytes()[:cut])
    run(tmp_path / "raw", tmp_path / "clean")
    summary = report(tmp_path / "clean")
    assert summary["samples"] + summary["lost"] == 4
    assert set(reasons(tmp_path / "clean").values()) <= {"kept", "no picture", "empty caption"}


def test_a_flipped_bit_anywhere_stops_nothing(tmp_path):
    tar = write_raw(tmp_path / "raw", 0, [sample(f"{i:09}", picture(i)) for i in range(3)])
    content = tar.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 12):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(place) % 8
        tar.write_bytes(bytes(flipped))
        write_raw(tmp_path / "raw", 1, [], start_time=float(place))
        stats = tar.with_name("00000_stats.json")
        stats.write_text(json.dumps({"successes": 3, "start_time": float(place)}))
        run(tmp_path / "raw", tmp_path / "clean")
        summary = report(tmp_path / "clean")
        assert summary["kept"] + sum(summary["dropped"].values()) == summary["samples"]
        assert summary["samples"] + summary["lost"] >= 3


def test_members_that_could_do_harm_are_only_bytes(tmp_path):
    good = sample("000000000", picture(0))
    evil = b"cos\nsystem\n(S'touch /tmp/owned'\ntR."
    odd = [
        [("000000001.pickle", evil), ("000000001.pyd", evil), ("000000001.pth", evil)],
        sample("../../escape", picture(1)),
        sample("/tmp/absolute", picture(2)),
        sample("a..b/../c", picture(3)),
        sample("x" * 90, picture(4)),
        sample("sub/folder.v1", picture(5)),
    ]
    write_raw(tmp_path / "raw", 0, [[*good, ("000000000.pkl", evil)], *odd])
    run(tmp_path / "raw", tmp_path / "clean")
    said = reasons(tmp_path / "clean")
    assert said == {
        "000000000": "kept",
        "sub/folder.v1": "kept",
        **dict.fromkeys(["../../escape", "/tmp/absolute", "a..b/../c", "x" * 90], "bad key"),
    }
    names = set(members(tmp_path / "clean" / "00000.tar"))
    assert names == {f"{key}.{suffix}" for key in ("000000000", "sub/folder.v1") for suffix in ("jpg", "json", "txt")}


def test_a_header_that_claims_a_terabyte_is_believed_by_nobody(tmp_path):
    tar = write_raw(tmp_path / "raw", 0, [sample("000000000", picture(0)), sample("000000001", picture(1))])
    huge = tarfile.TarInfo("000000002.jpg")
    huge.size = 10**12
    with tarfile.open(tar) as archive:
        end = archive.getmembers()[-1]
    begin = end.offset_data + -(-end.size // 512) * 512
    tar.write_bytes(tar.read_bytes()[:begin] + huge.tobuf(tarfile.GNU_FORMAT) + b"few bytes")
    run(tmp_path / "raw", tmp_path / "clean")
    assert reasons(tmp_path / "clean")["000000001"] == "kept"
    assert reasons(tmp_path / "clean").get("000000002", "too large") == "too large"


def test_what_is_kept_opens_in_the_loader_as_it_was_seen(tmp_path):
    """Upright, RGB, of the size that the json says; a second reader has nothing left to turn."""
    upright = scene(300, 400, 8)
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    words = json.dumps({"Image Orientation": "Rotated 90 CW", "Image Make": "Canon"})
    sizes = {"original_width": 800, "original_height": 600}
    samples = [
        sample("000000000", encoded(lying, quality=95), exif=words, **sizes),
        sample(
            "000000001",
            encoded(scene(300, 400, 9).transpose(Image.Transpose.ROTATE_90), exif=exif.tobytes()),
            exif=words,
        ),
        sample("000000002", encoded(scene(300, 400, 10), "PNG"), suffix="png", exif="{}"),
    ]
    write_raw(tmp_path / "raw", 0, samples)
    run(tmp_path / "raw", tmp_path / "clean")
    written = members(tmp_path / "clean" / "00000.tar")
    for i, suffix in enumerate(["jpg", "jpg", "png"]):
        info = json.loads(written[f"{i:09}.json"])
        assert (info["width"], info["height"]) == (300, 400)
        assert "Image Orientation" not in info["exif"]
        opened = pixels.open_picture(written[f"{i:09}.{suffix}"])
        apart = np.asarray(opened).astype(int) - np.asarray(scene(300, 400, 8 + i))
        assert np.abs(apart).mean() < 3
    first = json.loads(written["000000000.json"])
    assert json.loads(first["exif"]) == {"Image Make": "Canon"}
    assert (first["original_width"], first["original_height"]) == (600, 800)


def test_folders_of_others_are_refused(tmp_path):
    raw = small_set(tmp_path / "raw")
    with pytest.raises(UserError, match="is the input too"):
        run(raw, raw)
    small_set(tmp_path / "foreign")
    with pytest.raises(UserError, match="another program"):
        run(raw, tmp_path / "foreign")
    stats = tmp_path / "ours" / "00000_stats.json"
    stats.parent.mkdir()
    stats.write_text(json.dumps({"recipe": {"script": "folder"}}))
    with pytest.raises(UserError, match="another program"):
        run(raw, tmp_path / "ours")
    with pytest.raises(UserError, match="no whole shard"):
        run(tmp_path / "nowhere", tmp_path / "clean")


def test_settings_out_of_range_are_refused(tmp_path):
    for bad in ("min_size=0", "max_aspect=0.5", "duplicate_distance=4", "max_caption_repeats=0", "languages=en"):
        with pytest.raises(UserError, match=bad.partition("=")[0]):
            run(tmp_path, tmp_path / "clean", bad)


def script(*arguments):
    command = [sys.executable, "data_prep/filter.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_the_script_refuses_to_start_until_safety_is_named_and_then_runs(tmp_path):
    raw = small_set(tmp_path / "raw")
    with pytest.raises(UserError, match=r"^safety= has no default.*safety=punsafe safety\.threshold=0\.1"):
        filter_set(compose("data_prep/filter", [f"input={raw}", f"output={tmp_path / 'clean'}"]))
    assert not (tmp_path / "clean").exists()
    done = script(f"input={raw}", f"output={tmp_path / 'clean'}", "safety=punsafe", "safety.threshold=0.05")
    assert done.returncode == 0, done.stderr
    said = reasons(tmp_path / "clean")
    assert said["000000005"] == "kept"
    assert said["000000006"] == "unsafe"
    assert said["000000010"] == "unsafe"  # it has no score


def test_a_shard_whose_input_is_gone_goes_too(tmp_path):
    raw, clean = small_set(tmp_path / "raw"), tmp_path / "clean"
    run(raw, clean)
    for name in ("00001.tar", "00001_stats.json"):
        (raw / name).unlink()
    run(raw, clean, "worker_index=1", "worker_count=2")
    assert (clean / "00001.tar").exists()  # one worker alone removes
    run(raw, clean)
    assert not list(clean.glob("00001*"))
    assert report(clean)["shards"] == len(list(clean.glob("*.tar"))) == 2
    write_shard(clean / "00007.tar", [], started=0.0, recipe={"script": "folder"}, shards=1)
    with pytest.raises(UserError, match=r"00007\.tar was written by another program"):
        run(raw, clean)
    assert (clean / "00007.tar").exists()


@pytest.mark.parametrize("count", [0, 3, 5])
def test_a_tar_that_changes_while_it_is_filtered_is_told(tmp_path, count):
    samples = [sample(f"{i:09}", picture(i)) for i in range(5)]
    write_raw(tmp_path / "raw", 0, samples[:4])
    run(tmp_path / "raw", tmp_path / "clean")
    (tmp_path / "clean" / "00000_stats.json").unlink()
    write_tar(tmp_path / "raw" / "00000.tar", [member for one in samples[:count] for member in one])
    with pytest.raises(UserError, match=r"00000\.tar changed while it was filtered"):
        run(tmp_path / "raw", tmp_path / "clean")
    assert not (tmp_path / "clean" / "00000_stats.json").exists()


def test_another_error_keeps_its_words(tmp_path, monkeypatch):
    def fail(opened, quality):
        raise ValueError("zip() is not what failed")

    write_raw(tmp_path / "raw", 0, [sample("0", encoded(scene(300, 300, 0).convert("L"), "PNG"), suffix="png")])
    monkeypatch.setattr(write_module, "encode", fail)
    with pytest.raises(ValueError, match="is not what failed"):
        run(tmp_path / "raw", tmp_path / "clean")


def test_how_many_shards_a_set_has_is_not_what_a_shard_holds(tmp_path):
    """So that folder.py may say it anew of every shard when pictures come, and none is looked at again."""
    write_shard(tmp_path / "00000.tar", [], started=0.0, recipe={"script": "folder"}, shards=1)
    before = source_of(tmp_path / "00000.tar")
    say_shards(tmp_path / "00000.tar", read_stats(tmp_path / "00000.tar"), 7)
    assert source_of(tmp_path / "00000.tar") == before
