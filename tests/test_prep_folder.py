"""A user's own pictures into shards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import awkward
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from imagen.cli import compose
from imagen.data import pixels
from imagen.data.shards import read_members, stats_path
from imagen.errors import UserError
from imagen.files import locate
from imagen.prep.folder import as_stored, find_pictures, pack_folder, read_metadata


def run(source, output, **options):
    overrides = [f"{name}={value}" for name, value in options.items()]
    pack_folder(compose("data_prep/folder", [f"input={source}", f"output={output}", *overrides]))


def put(folder, name, caption=None, size=(40, 30), seed=0, kind="JPEG"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(awkward.encoded(awkward.scene(*size, seed), kind))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


def infos(output, shard="00000"):
    return [json.loads(content) for _, content in read_members(output / f"{shard}.tar", ".json")]


def report(output):
    return json.loads((output / "reports" / "folder.json").read_text())


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_pictures_with_texts_beside_them(tmp_path, where):
    source = tmp_path / "in" if where == "disk" else locate("memory://folder-in")
    output = tmp_path / "out" if where == "disk" else locate("memory://folder-out")
    for name in ("2.jpg", "10.jpg", "b/1.jpg", "a 3/x.jpg"):
        put(source, name, f" caption of {name}\n")
    run(source, output, shard_size=3)
    assert [info["path"] for info in infos(output)] == ["2.jpg", "10.jpg", "a 3/x.jpg"]
    assert [info["path"] for info in infos(output, "00001")] == ["b/1.jpg"]
    first = infos(output)[0]
    assert first["caption"] == "caption of 2.jpg"
    assert (first["width"], first["height"], first["original_width"]) == (40, 30, 40)
    assert dict(read_members(output / "00000.tar", ".jpg"))["000000"] == (source / "2.jpg").read_bytes()
    assert dict(read_members(output / "00000.tar", ".txt"))["000001"] == b"caption of 10.jpg"
    counted = report(output)
    assert (counted["read"], counted["written"], counted["left_out"]) == (4, 4, {})


def test_natural_order_is_stable():
    source = locate("memory://natural")
    for name in ("img10.png", "img9.png", "img09.png", "a/img1.png", "IMG1.png", "b.png", ".hidden/x.png", ".y.png"):
        put(source, name, "c", size=(2, 2), kind="PNG")
    found = [picture.path for picture in find_pictures(source)]
    assert found == ["IMG1.png", "a/img1.png", "b.png", "img09.png", "img9.png", "img10.png"]


def test_what_cannot_be_a_sample_is_counted(tmp_path):
    put(tmp_path, "good.jpg", "fine")
    put(tmp_path, "silent.jpg")
    put(tmp_path, "blank.jpg", " \n")
    for name, content in {
        "page.jpg": b"<html>",
        "empty.png": b"",
        "huge.png": awkward.huge_png(9000),
        "cut.jpg": awkward.encoded(awkward.scene(64, 64, 1), "JPEG")[:700],
    }.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).with_suffix(".txt").write_text("a caption")
    (tmp_path / "notes.md").write_text("no picture")
    run(tmp_path, tmp_path / "out")
    counted = report(tmp_path / "out")
    assert counted["left_out"] == {"no caption": 2, "undecodable": 4}
    assert counted["written"] == 1
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert {row["path"]: row["error_message"] for row in rows if row["error_message"]} == {
        **dict.fromkeys(("silent.jpg", "blank.jpg"), "no caption"),
        **dict.fromkeys(("page.jpg", "empty.png", "huge.png", "cut.jpg"), "undecodable"),
    }
    assert "too large" in next(row["detail"] for row in rows if row["path"] == "huge.png")


def test_metadata_gives_captions_and_fields(tmp_path):
    for name in ("a.jpg", "sub/b.jpg", "c.jpg", "unnamed.jpg"):
        put(tmp_path, name, "not this one")
    (tmp_path / "metadata.csv").write_text(
        "\ufefffile_name,text,aesthetic,year,place,path,width,id\n"
        'a.jpg,"first, with ""quotes""\nand a line",5.5,1999,Köln,mine,7,007\n'
        "a.jpg,second,1,1,other,mine,7,1\n"
        "./sub\\b.jpg,one,,2001,,,7,2\n"
        "c.jpg,,1,2,,,7,3\n"
        "missing.jpg,gone,1,2,,,7,4\n"
        "../outside.jpg,away,1,2,,,7,5\n"
        "/etc/hostname,away,1,2\n",
        encoding="utf-8",
    )
    run(tmp_path, tmp_path / "out")
    first, second = infos(tmp_path / "out")
    assert first["captions"] == ['first, with "quotes"\nand a line', "second"]
    assert first["caption"] == first["captions"][0]
    assert (first["aesthetic"], first["year"], first["place"], first["id"]) == (5.5, 1999, "Köln", "007")
    assert (first["path"], first["width"]) == ("a.jpg", 40)  # ours, whatever the columns are called
    assert (second["path"], second["aesthetic"], second["year"], second["place"]) == ("sub/b.jpg", None, 2001, None)
    assert "captions" not in second
    assert report(tmp_path / "out")["left_out"] == {"no caption": 2, "no such file": 1, "not below the folder": 2}


@pytest.mark.parametrize("text", ["name,caption\na,b\n", "file_name,label\na,b\n", ""])
def test_metadata_without_its_columns_is_refused(tmp_path, text):
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(UserError, match="needs file_name, and caption or text"):
        read_metadata(tmp_path / "metadata.csv")


def test_odd_captions_arrive_whole(tmp_path):
    captions = {
        "nul": "before\0after",
        "rtl": "תמונה של חוף",
        "long": "word " * 20_000 + "end",
        "entity": "fish &amp; chips",
    }
    for name, caption in captions.items():
        put(tmp_path, f"{name}.jpg", caption)
    run(tmp_path, tmp_path / "out")
    found = {info["path"].removesuffix(".jpg"): info["caption"] for info in infos(tmp_path / "out")}
    assert found == captions


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_a_file_name_that_is_not_utf8(tmp_path):
    put(tmp_path, "good.jpg", "fine")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    Path(f"{odd}.jpg").write_bytes((tmp_path / "good.jpg").read_bytes())
    Path(f"{odd}.txt").write_text("an odd name")
    run(tmp_path, tmp_path / "out")
    assert {info["path"]: info["caption"] for info in infos(tmp_path / "out")}["caf\ufffd.jpg"] == "an odd name"


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("MPO", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_the_bytes_of_usual_formats_are_kept(kind, suffix):
    content = awkward.encoded(awkward.scene(20, 10, 0), kind)
    assert as_stored(content) == (suffix, content)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF"])
def test_rarer_formats_become_png_without_loss(kind):
    drawn = awkward.scene(20, 10, 0).quantize(16)
    suffix, content = as_stored(awkward.encoded(drawn, kind))
    assert suffix == "png"
    assert np.array_equal(np.array(pixels.open_picture(content)), np.array(drawn.convert("RGB")))


def test_a_tiff_is_stored_upright():
    upright = awkward.scene(20, 10, 0)
    opened = pixels.open_picture(as_stored(awkward.turned(upright, "TIFF"))[1])
    assert np.array_equal(np.array(opened), np.array(upright))


def test_a_camera_held_sideways_keeps_its_bytes_and_has_the_size_that_one_sees(tmp_path):
    content = awkward.turned(awkward.scene(20, 10, 0), "JPEG")
    (tmp_path / "turned.jpg").write_bytes(content)
    (tmp_path / "turned.txt").write_text("a scene")
    run(tmp_path, tmp_path / "out")
    assert (infos(tmp_path / "out")[0]["width"], infos(tmp_path / "out")[0]["height"]) == (20, 10)
    assert [stored for _, stored in read_members(tmp_path / "out" / "00000.tar", ".jpg")] == [content]


def test_again_does_nothing_and_what_changed_is_redone(tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    for i in range(5):
        put(source, f"{i}.jpg", f"caption {i}", seed=i)
    run(source, output, shard_size=2)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.tar")}
    run(source, output, shard_size=2)
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*.tar")}
    assert "shards written now: 0, there already: 3" in capsys.readouterr().out
    (source / "2.txt").write_text("another caption")
    stats_path(output / "00002.tar").unlink()  # as if it had been stopped
    run(source, output, shard_size=2)
    assert "shards written now: 2, there already: 1" in capsys.readouterr().out
    assert infos(output, "00001")[0]["caption"] == "another caption"
    run(source, output, shard_size=5)
    assert sorted(path.name for path in output.glob("*.tar")) == ["00000.tar"]
    assert len(infos(output)) == 5


def test_workers_together_write_what_one_writes(tmp_path, capsys):
    source = tmp_path / "in"
    for i in range(7):
        put(source, f"{i}.jpg", f"caption {i}", seed=i)
    run(source, tmp_path / "one", shard_size=2)
    for index in range(2):
        run(source, tmp_path / "two", shard_size=2, worker_index=index, worker_count=2)
        assert (tmp_path / "two" / "reports" / "folder.json").exists() == (index == 1)
    assert "other workers are not done yet" in capsys.readouterr().out
    for path in sorted((tmp_path / "one").glob("0*")):
        if not path.name.endswith("_stats.json"):  # they tell the time
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    one, two = report(tmp_path / "one"), report(tmp_path / "two")
    assert one | {"config": None} == two | {"config": None}


def test_mistakes_are_told_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no picture"):
        run(tmp_path, tmp_path / "out")
    put(tmp_path, "a.jpg", "c")
    with pytest.raises(UserError, match="shard_size=0"):
        run(tmp_path, tmp_path / "out", shard_size=0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "00000_stats.json").write_text('{"recipe": {"script": "filter"}}')
    with pytest.raises(UserError, match="written by another program"):
        run(tmp_path, tmp_path / "other")


def test_the_script_as_a_user_runs_it(tmp_path):
    put(tmp_path / "in", "cat.jpg", "a cat")
    put(tmp_path / "in", "dog.png", "a dog", kind="PNG")
    script = Path(__file__).parents[1] / "data_prep" / "folder.py"
    command = [sys.executable, script, f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "num_workers=2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 of 2 pictures written" in result.stdout
    assert list(dict(read_members(tmp_path / "out" / "00000.tar", ".jpg"))) == ["000000000"]
    assert list(dict(read_members(tmp_path / "out" / "00000.tar", ".png"))) == ["000000001"]
    assert (tmp_path / "out" / "00000_index.npy").exists()


def test_pictures_that_come_last_redo_only_the_last_shards(tmp_path):
    for i in range(4):
        put(tmp_path / "in", f"{i}.jpg", "a caption", seed=i)
    run(tmp_path / "in", tmp_path / "out", shard_size=2)
    before = {tar.name: tar.stat().st_mtime_ns for tar in (tmp_path / "out").glob("*.tar")}
    put(tmp_path / "in", "9.jpg", "a caption", seed=9)
    run(tmp_path / "in", tmp_path / "out", shard_size=2)
    after = {tar.name: tar.stat().st_mtime_ns for tar in (tmp_path / "out").glob("*.tar")}
    assert after == before | {"00002.tar": after["00002.tar"]}
    assert {json.loads(file.read_text())["shards"] for file in (tmp_path / "out").glob("*_stats.json")} == {3}
    assert report(tmp_path / "out")["written"] == 5


def test_what_is_not_utf8_and_what_moves_is_left_out(tmp_path):
    put(tmp_path / "in", "good.jpg", "a caption")
    put(tmp_path / "in", "latin.jpg").with_suffix(".txt").write_bytes("caf\xe9".encode("latin-1"))
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "in" / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "in" / "moving.txt").write_text("it moves")
    run(tmp_path / "in", tmp_path / "out")
    assert report(tmp_path / "out")["left_out"] == {"bad caption": 1, "animated": 1}
    (tmp_path / "in" / "metadata.csv").write_bytes(b"file_name,caption\ngood.jpg,caf\xe9\n")
    with pytest.raises(UserError, match=r"metadata.csv is not UTF-8 \(byte 30\): save it as UTF-8"):
        run(tmp_path / "in", tmp_path / "out")
