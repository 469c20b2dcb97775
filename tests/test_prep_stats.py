"""Counts and histograms from parquet files, on a page that needs no other file."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from imagen.cli import compose
from imagen.data import shards
from imagen.data.writer import Entry, sample_row, write_shard
from imagen.errors import UserError
from imagen.files import locate
from imagen.prep.stats import stats
from imagen.prep.stats.command import sheet
from imagen.prep.stats.counts import EDGES, Counts, CountShard
from imagen.prep.stats.page import Section, page

CAPTIONS = ["a cat", "", "three words here", "שלום עולם", "<script>alert(1)</script>\0 & more", "word " * 20_000]
SIZES = [(64, 64), (64, 128), (200, 100), (64, 64), (64, 65), (300, 900)]


def picture(size: tuple[int, int], colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(folder, count: int = 2) -> None:
    """``count`` shards of all captions; of each a seventh row was dropped as blurred."""
    for shard in range(count):
        entries = []
        for i, (caption, size) in enumerate(zip(CAPTIONS, SIZES, strict=True)):
            row = sample_row(f"{shard:05}{i}", caption, size, (2 * size[0], 2 * size[1]), "")
            entries.append(Entry(row, picture(size, 40 * i), "png"))
        lost = sample_row(f"{shard:05}9", "gone", (1, 1), (1, 1), "") | {"status": "failed", "error_message": "blurred"}
        tar = folder / f"{shard:05}.tar"
        write_shard(tar, entries, started=0.0, recipe={}, shards=count, dropped=[lost])


def run(*overrides: str) -> None:
    stats(compose("data_prep/stats", list(overrides)))


class Links(HTMLParser):
    """What a page would load, and the tags that are left open."""

    def __init__(self):
        super().__init__()
        self.links, self.open, self.tags, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:  # cells and rows may be closed by their table
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        self.text += data


def read(html: str) -> Links:
    links = Links()
    links.feed(html)
    return links


def test_a_flat_folder(tmp_path, capsys):
    write_folder(tmp_path)
    run(f"input={tmp_path}", "pictures=12", "num_workers=0")
    report = json.loads((tmp_path / "reports" / "stats.json").read_text())["folders"][tmp_path.name]
    assert (report["pictures"], report["described"], report["shards"]) == (12, 12, 2)
    assert report["bytes"] == sum(tar.stat().st_size for tar in tmp_path.glob("*.tar"))
    assert report["reasons"] == {"blurred": 2}
    assert dict(report["histograms"]["words"]["bins"]) == {edge: 2 * n for edge, n in words().items()}
    assert report["histograms"]["short side"]["median"] == 64
    assert report["histograms"]["short side of the original"]["percent_95"] == 600
    assert report["histograms"]["characters"]["percent_95"] == 100_000
    links = read((tmp_path / "reports" / "stats.html").read_text())
    assert links.open == []
    assert len(links.links) == 12
    assert all(link.startswith("data:image/jpeg;base64,") for link in links.links)
    assert "script" not in links.tags
    assert "<script>alert(1)</script>\ufffd & more" in links.text
    assert "שלום עולם" in links.text
    assert "12 samples in 2 shards" in capsys.readouterr().out


def words() -> dict[float, int]:
    """How many of the captions are in each bin, counted one by one."""
    bins = dict.fromkeys(EDGES["words"], 0)
    for caption in CAPTIONS:
        bins[max(edge for edge in EDGES["words"] if edge <= len(caption.split()))] += 1
    return bins


def test_the_sheet_shows_the_pictures_themselves(tmp_path):
    write_folder(tmp_path)
    shown = sheet({tmp_path / f"{i:05}.tar": 6 for i in range(2)}, 12)
    assert [one.key for one in shown] == [f"{shard:05}{i}" for shard in range(2) for i in range(6)]
    assert [one.picture.size for one in shown[:6]] == SIZES
    assert [one.key[4] for one in sheet({tmp_path / f"{i:05}.tar": 6 for i in range(2)}, 4)] == ["0", "0", "1", "1"]
    html = page("set", {}, [Section("one", Counts(), shown[:1])])
    (uri,) = re.findall(r"base64,([^\"]+)", html)
    assert Image.open(io.BytesIO(base64.b64decode(uri))).size == (64, 64)


def test_a_root_tells_of_every_folder_and_looks_into_the_largest(tmp_path):
    for split in shards.SPLITS:
        for size in (8, 64):
            write_folder(shards.images_folder(tmp_path, split, size), count=1)
    text = tmp_path / "train" / "text-hash-01234567"
    shards.write_tar(text / "00000.tar", [("_encoder.json", b"{}")])
    shards.stats_path(text / "00000.tar").write_text('{"successes": 6}')
    shards.write_tar(text / "00001.tar", [])
    run(f"root={tmp_path}", "pictures=2")
    report = json.loads((tmp_path / "reports" / "stats.json").read_text())["folders"]
    names = ["train/images-8", "train/images-64", "train/text-hash-01234567", "val/images-8", "val/images-64"]
    assert list(report) == names
    assert [folder["described"] for folder in report.values()] == [0, 6, 0, 0, 6]
    assert [folder["pictures"] for folder in report.values()] == [6] * 5
    assert report["train/text-hash-01234567"]["notes"] == {"without _stats.json: unfinished, not counted": 1}
    assert len(read((tmp_path / "reports" / "stats.html").read_text()).links) == 4


def test_a_size_that_is_not_begun_stops_nothing(tmp_path):
    write_folder(shards.images_folder(tmp_path, "train", 8), count=1)
    tar = shards.images_folder(tmp_path, "train", 64) / "00000.tar"
    shards.write_tar(tar, [])
    run(f"root={tmp_path}")
    report = json.loads((tmp_path / "reports" / "stats.json").read_text())["folders"]
    assert [folder["pictures"] for folder in report.values()] == [6, 0]


def test_what_cannot_be_read_is_told_and_stops_nothing(tmp_path):
    write_folder(tmp_path, count=4)
    (tmp_path / "00000.parquet").unlink()
    (tmp_path / "00001.parquet").write_bytes(b"PAR1")
    shards.stats_path(tmp_path / "00002.tar").write_text("{")
    tar = tmp_path / "00003.tar"
    content = bytearray(tar.read_bytes())
    content[content.index(b"\x89PNG")] = 0  # the first picture
    tar.write_bytes(content)
    run(f"input={tmp_path}", "pictures=100", f"output={tmp_path / 'elsewhere'}")
    report = json.loads((tmp_path / "elsewhere" / "stats.json").read_text())["folders"][tmp_path.name]
    assert len(report["notes"]) == 3
    assert (report["pictures"], report["described"]) == (18, 12)
    assert "cannot be decoded" in (tmp_path / "elsewhere" / "stats.html").read_text()


def test_rows_of_img2dataset_that_failed_are_not_counted(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = {"caption": [None, "a dog", "lost"], "key": ["0", "1", "2"], "width": [10, 20, None]}
    table |= {"height": [10, 20, None], "error_message": [None, None, "HTTP Error 404"]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "00000.parquet")
    shards.write_tar(tmp_path / "00000.tar", [])
    stated = {"successes": 2, "status_dict": {"success": 2, "HTTP Error 404": 1}}
    shards.stats_path(tmp_path / "00000.tar").write_text(json.dumps(stated))
    _, counts = CountShard(True)(tmp_path / "00000.tar")
    assert counts.described == counts.pictures == 2
    assert counts.values["words"] == {0: 1, 2: 1}
    assert counts.reasons == {"HTTP Error 404": 1}


def test_sums_do_not_depend_on_the_order(tmp_path):
    write_folder(tmp_path, count=3)
    parts = [CountShard(True)(tmp_path / f"{i:05}.tar")[1] for i in range(3)]
    assert parts[0] + parts[1] + parts[2] == parts[2] + (parts[1] + parts[0])


def test_quantiles():
    counts = Counts()
    counts.values["words"].update(dict.fromkeys(range(1, 101), 1))
    assert [counts.quantile("words", share) for share in (0.05, 0.5, 0.95, 1.0)] == [5, 50, 95, 100]
    assert sum(counts.histogram("words")) == 100
    assert counts.quantile("characters", 0.5) is None


def test_a_set_behind_a_url():
    root = locate("memory://looked/at")
    write_folder(shards.images_folder(root, "train", 64), count=1)
    run("root=memory://looked/at")
    assert (root / "reports" / "stats.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("overrides", [[], ["input=a", "root=b"], ["root=/nowhere"], ["input=/nowhere"]])
def test_what_is_no_set_is_refused(overrides):
    with pytest.raises(UserError, match=r"input=|root=|no whole shard"):
        run(*overrides)


def test_the_script(tmp_path):
    write_folder(tmp_path)
    script = Path(__file__).parents[1] / "data_prep" / "stats.py"
    result = subprocess.run([sys.executable, script, f"input={tmp_path}"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"the page: {tmp_path / 'reports' / 'stats.html'}" in result.stdout
