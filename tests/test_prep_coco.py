"""A folder as COCO's, small, of photographs that packages ship: prompts drawn by their ids, pictures as they are."""

import csv
import hashlib
import io
import json
import subprocess
import sys
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

from imagen.cli import compose
from imagen.data import shards
from imagen.errors import UserError
from imagen.evaluation.reference import read_folder
from imagen.files import locate
from imagen.prep.coco import Caption, coco, draw
from imagen.prompts import OF_COCO, read_prompts

IMAGES, EACH = 6, 5
WORDS = ["two dogs", "a cat, asleep", 'a "red" bus\n', " the  sea at noon ", "", "naïve café, été"]


def photograph(number: int) -> bytes:
    """A part of a photograph of scikit-learn's, as a JPEG."""
    source = (files("sklearn.datasets") / "images" / ("china.jpg", "flower.jpg")[number % 2]).read_bytes()
    buffer = io.BytesIO()
    width, height = 100 + 10 * number, 90
    Image.open(io.BytesIO(source)).crop((20 * number, 0, 20 * number + width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


def image_id(number: int) -> int:
    return 42 + 1000 * number


def file_name(number: int) -> str:
    return f"COCO_val2014_{image_id(number):012}.jpg"


def write_coco(folder, year: int = 2014) -> None:
    """Images and annotations are listed in no order, as in COCO's own files."""
    images = [{"id": image_id(i), "file_name": file_name(i), "license": 1} for i in reversed(range(IMAGES))]
    said = [
        {"image_id": image_id(i), "id": 100 * j + i, "caption": f"{WORDS[i]} {j}" if WORDS[i] else ""}
        for j in range(EACH)
        for i in range(IMAGES)
    ]
    listed = {"info": {}, "licenses": [], "images": images, "annotations": said}
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / f"captions_val{year}.json").write_text(json.dumps(listed), encoding="utf-8")
    (folder / f"val{year}").mkdir()
    for i in range(IMAGES):
        (folder / f"val{year}" / file_name(i)).write_bytes(photograph(i))


@pytest.fixture
def source(tmp_path):
    write_coco(tmp_path / "coco")
    return tmp_path / "coco"


def run(source, output, *overrides: str) -> dict:
    coco(
        compose("data_prep/coco", [f"input={source}", f"output={output}", "num_prompts=20", "shard_size=4", *overrides])
    )
    return json.loads((locate(str(output)) / "reports" / "coco.json").read_text())


def samples(output) -> dict[str, dict]:
    """key -> its json, with its picture and caption as the tar has them."""
    read: dict[str, dict] = {}
    for tar in shards.whole_shards(output, skip_unfinished=False):
        for suffix in (".json", ".jpg", ".txt"):
            for key, content in shards.read_members(tar, suffix):
                read.setdefault(key, {})[suffix] = content
    return {
        key: json.loads(one[".json"]) | {"jpg": one[".jpg"], "txt": one[".txt"].decode()} for key, one in read.items()
    }


def test_the_prompts_are_what_sample_py_reads(source, tmp_path, capsys):
    report = run(source, tmp_path / "out")
    file = tmp_path / "out" / "prompts.csv"
    prompts = read_prompts(str(file))
    rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline="")))
    assert [row["prompt"] for row in rows] == prompts
    assert len(prompts) == len({row["caption_id"] for row in rows}) == 20
    for row in rows:
        j, i = divmod(int(row["caption_id"]), 100)
        assert int(row["image_id"]) == image_id(i)
        assert row["prompt"] == " ".join(f"{WORDS[i]} {j}".split()), "one line, single spaces"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert report["prompts"] == {"prompts": 20, "of": (IMAGES - 1) * EACH, "sha256": digest, "seed": 0}
    assert digest in capsys.readouterr().out


def test_evaluate_py_takes_the_draw_by_name_and_the_pictures_as_its_reference(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"coco30k is read from data/coco/prompts.csv, .* make it with"):
        read_prompts("coco30k")
    run(source, tmp_path / "data" / "coco")
    with pytest.raises(UserError, match=r"coco10k needs 10,000 prompts, and data/coco/prompts.csv has 20"):
        read_prompts("coco10k")
    monkeypatch.setitem(OF_COCO, "coco30k", 20)
    monkeypatch.setitem(OF_COCO, "coco10k", 7)
    assert read_prompts("coco30k")[:7] == read_prompts("coco10k")
    assert len(read_prompts("coco30k")) == 20
    found = read_folder("data/coco", 64)
    assert list(found.captions) == [one["txt"] for one in samples("data/coco").values()]
    assert [batch.shape for batch in found.batches(4)] == [(4, 3, 64, 64), (2, 3, 64, 64)]


def test_the_draw_is_of_the_seed_and_the_ids_alone():
    captions = [Caption(i, i // 5, f"caption {i}") for i in range(1000)]
    drawn = draw(captions, 300, 7)
    assert drawn == draw(captions[::-1], 300, 7)
    assert draw(captions, 100, 7) == drawn[:100]
    assert draw(captions, 300, 8) != drawn
    assert len({one.caption_id for one in drawn}) == 300
    # fixed for good: a published list of prompts must come out the same
    ids = sorted(range(1000), key=lambda i: hashlib.sha256(f"7 {i}".encode()).hexdigest())
    assert [one.caption_id for one in drawn] == ids[:300]
    assert [one.caption_id for one in draw(captions, 3, 0)] == [61, 798, 793]


def test_every_caption_is_as_likely():
    captions = [Caption(i, 0, "a caption") for i in range(20)]
    met = Counter(one.caption_id for seed in range(2000) for one in draw(captions, 5, seed))
    # 500 each, by a binomial of deviation 19
    assert all(abs(met[i] - 500) < 5 * 19.4 for i in range(20))


def test_the_reference_is_every_picture_byte_for_byte(source, tmp_path):
    report = run(source, tmp_path / "out")
    read = samples(tmp_path / "out")
    assert list(read) == ["000000", "000001", "000002", "000003", "000010", "000011"]
    for i, one in enumerate(read.values()):
        assert one["jpg"] == photograph(i)
        assert (one["image_id"], one["file_name"]) == (image_id(i), file_name(i))
        assert (one["width"], one["height"]) == (100 + 10 * i, 90)
        assert one["captions"] == [" ".join(f"{WORDS[i]} {j}".split()) for j in range(EACH) if WORDS[i]]
        assert one["caption"] == (one["captions"][0] if WORDS[i] else None)
        assert one["txt"] == (one["caption"] or "")
        assert one["sha256"] == hashlib.sha256(photograph(i)).hexdigest()
    assert report["pictures"] == {"success": IMAGES}


def test_what_is_missing_or_no_picture_is_counted_and_made_good_later(source, tmp_path):
    pictures = source / "val2014"
    whole = (pictures / file_name(1)).read_bytes()
    (pictures / file_name(1)).unlink()
    (pictures / file_name(5)).write_bytes(b"<html>")
    report = run(source, tmp_path / "out")
    assert report["pictures"] == {"success": IMAGES - 2, "picture is missing": 1, "picture is no JPEG or PNG": 1}
    kept = (tmp_path / "out" / "00001.tar").stat().st_mtime_ns
    (pictures / file_name(1)).write_bytes(whole)
    assert run(source, tmp_path / "out")["pictures"]["success"] == IMAGES - 1
    assert (tmp_path / "out" / "00001.tar").stat().st_mtime_ns == kept


def test_a_second_run_writes_nothing_and_an_interrupted_shard_is_redone(source, tmp_path, capsys):
    run(source, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")}
    run(source, tmp_path / "out")
    assert "written now: 0, there already: 2" in capsys.readouterr().out
    shards.stats_path(tmp_path / "out" / "00000.tar").unlink()
    (tmp_path / "out" / "00000.tar").write_bytes(b"half")
    run(source, tmp_path / "out")
    assert "written now: 1, there already: 1" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")} == before
    run(source, tmp_path / "out", "shard_size=10")
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == ["00000.tar"]


def test_workers_share_the_shards_and_the_last_reports(source, tmp_path, capsys):
    config = [f"input={source}", f"output={tmp_path / 'out'}", "num_prompts=5", "shard_size=2", "worker_count=2"]
    coco(compose("data_prep/coco", [*config, "worker_index=0"]))
    assert "other workers are not done yet" in capsys.readouterr().out
    coco(compose("data_prep/coco", [*config, "worker_index=1"]))
    assert json.loads((tmp_path / "out" / "reports" / "coco.json").read_text())["pictures"] == {"success": IMAGES}


def test_a_file_name_leads_nowhere_else(source, tmp_path):
    path = source / "annotations" / "captions_val2014.json"
    said = json.loads(path.read_text())
    said["images"][0]["file_name"] = "../annotations/captions_val2014.json"
    path.write_text(json.dumps(said))
    assert run(source, tmp_path / "out")["pictures"] == {"success": IMAGES - 1, "picture is missing": 1}


def test_another_year_and_a_url(source, tmp_path):
    write_coco(tmp_path / "other", year=2017)
    report = run(tmp_path / "other", "memory://coco/out", "year=2017")
    assert report["pictures"] == {"success": IMAGES}
    assert len(samples(locate("memory://coco/out"))) == IMAGES


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("num_prompts=26", "there are only 25 captions"),
        ("num_prompts=0", "num_prompts=0"),
        ("shard_size=0", "shard_size=0"),
        ("year=2017", r"captions_val2017\.json is not there"),
    ],
)
def test_what_cannot_be_is_refused(source, tmp_path, override, match):
    with pytest.raises(UserError, match=match):
        run(source, tmp_path / "out", override)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("content", ["{", "[]", '{"images": [], "annotations": [{"id": 1}]}'])
def test_another_file_is_refused(source, tmp_path, content):
    (source / "annotations" / "captions_val2014.json").write_text(content)
    with pytest.raises(UserError, match="is not COCO's file of captions"):
        run(source, tmp_path / "out")


def test_the_script(source, tmp_path):
    script = Path(__file__).parents[1] / "data_prep" / "coco.py"
    options = [f"input={source}", f"output={tmp_path / 'out'}", "num_prompts=20", "num_workers=1"]
    result = subprocess.run([sys.executable, script, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "20 of 25 captions, SHA-256" in result.stdout
    assert "6 pictures" in result.stdout


def test_the_report_waits_for_what_is_of_another_making(source, tmp_path, capsys):
    report = run(source, tmp_path / "out", "shard_size=2")
    path = source / "annotations" / "captions_val2014.json"
    path.write_text(path.read_text().replace("two dogs", "three dogs"))
    assert run(source, tmp_path / "out", "shard_size=2", "worker_index=1", "worker_count=2") == report
    assert "other workers are not done yet" in capsys.readouterr().out
    other = run(source, tmp_path / "out", "shard_size=2", "worker_index=0", "worker_count=2")
    assert other["annotations"] != report["annotations"]


def test_a_disk_that_fails_is_no_fault_of_the_picture(source, tmp_path):
    (source / "val2014" / file_name(1)).unlink()
    (source / "val2014" / file_name(1)).mkdir()  # which is there, and cannot be read
    with pytest.raises(IsADirectoryError):
        run(source, tmp_path / "out")
    assert not shards.stats_path(tmp_path / "out" / "00000.tar").exists()
    (source / "val2014" / file_name(1)).rmdir()
    (source / "val2014" / file_name(1)).symlink_to(tmp_path / "nowhere")  # it vanished once it was listed
    assert run(source, tmp_path / "out")["pictures"] == {"success": IMAGES - 1, "picture is missing": 1}
