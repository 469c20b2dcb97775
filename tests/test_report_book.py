"""The page of what sweeps have shown: copies what reports wrote, and tells of all that it has."""

import json

import pytest

from imagen.errors import UserError
from imagen.report.book import BEGIN, END, write_book
from imagen.report.intervals import interval
from imagen.report.verdict import HOLDS, Judged, Verdict

HEAD = "ablation,scale,variant,seed,run,evaluation,fd_pixel\n"
WHOLE = f"{HEAD}x,demo,a,0,1234-s0,x-demo,1.5\nx,demo,b,0,5678-s0,x-demo,2.5\n"


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "docs" / "ablations.md"
    path.parent.mkdir()
    path.write_text(f"# Ablations\n\n{BEGIN}\nwhat was\n{END}\n\nMore.\n")
    return path


def report(folder, sentence="holds: 1 (0.5 to 1.5)", missing=(), table=WHOLE):
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "paper": "figure 4a",
        "claim": "larger is better",
        "verdicts": [{"sentence": sentence}, {"sentence": "undecided: seconds"}],
        "rows": 9,
        "missing": list(missing),
        "command": f"python train.py -m ablation={folder.name}",
    }
    (folder / "verdict.json").write_text(json.dumps(told))
    (folder / "table.csv").write_text(table)
    (folder / "figure.png").write_bytes(b"png")


def test_what_was_told_before_stays(tmp_path, page):
    report(tmp_path / "one" / "encoder_size-demo")
    assert write_book(tmp_path / "one", page) == ["encoder_size-demo"]
    report(tmp_path / "two" / "unet_size-demo", "undecided", missing=[{"name": "a-s0"}])
    assert write_book(tmp_path / "two", page) == ["encoder_size-demo", "unet_size-demo"]
    text = page.read_text()
    assert text.startswith("# Ablations\n")
    assert text.endswith(f"{END}\n\nMore.\n")
    assert "what was" not in text
    assert "Larger is better (figure 4a). holds: 1 (0.5 to 1.5)." in text
    assert "Also: undecided: seconds." in text
    assert "![unet_size-demo](ablations/unet_size-demo.png)" in text
    assert "1 points are missing" in text
    assert (page.parent / "ablations" / "encoder_size-demo.csv").read_text() == WHOLE


@pytest.mark.parametrize(
    "table",
    [
        "".join(WHOLE.splitlines(keepends=True)[:2]),
        WHOLE.replace("5678-s0", "9abc-s0"),
        WHOLE.replace("5678-s0,x-demo", "5678-s0,x-demo-89abcdef"),
    ],
    ids=["variant=a", "max_steps=3", "measure="],
)
def test_a_report_of_a_part_or_otherwise_does_not_take_the_place_of_the_whole(tmp_path, page, table):
    report(tmp_path / "one" / "x-demo")
    write_book(tmp_path / "one", page)
    before = {path: path.read_bytes() for path in page.parent.rglob("*.*")}
    report(tmp_path / "one" / "x-demo", "undecided", table=table)
    report(tmp_path / "one" / "a-demo")
    with pytest.raises(
        UserError, match=r"lacks b-s0 of \S+x-demo\.csv, the run 5678-s0 .* with finished=\S+x-demo\.csv"
    ):
        write_book(tmp_path / "one", page)
    assert {path: path.read_bytes() for path in page.parent.rglob("*.*")} == before


def test_rows_that_came_are_kept_and_a_figure_that_is_no_more_is_not(tmp_path, page):
    report(tmp_path / "one" / "x-demo")
    write_book(tmp_path / "one", page)
    more = f"{WHOLE}x,demo,b,1,5678-s1,x-demo,2.5\n"
    report(tmp_path / "one" / "x-demo", table=more)
    (tmp_path / "one" / "x-demo" / "figure.png").unlink()
    write_book(tmp_path / "one", page)
    assert (page.parent / "ablations" / "x-demo.csv").read_text() == more
    assert not (page.parent / "ablations" / "x-demo.png").exists()
    assert "x-demo.png" not in page.read_text()


def test_a_verdict_of_several_contrasts_is_one_cell(tmp_path, page):
    judged = [Judged(f"({name}) − (a)", HOLDS, "positive, as expected", {0: 1.0}, {}, interval([1.0])) for name in "bc"]
    report(tmp_path / "one" / "x-demo", Verdict("fd_pixel", "positive", HOLDS, judged).sentence)
    write_book(tmp_path / "one", page)
    (line,) = [line for line in page.read_text().splitlines() if line.startswith("| [x-demo]")]
    assert line.count("|") == 5
    assert "2 contrasts that must all hold: (b) − (a): +1, 1 seed; positive, as expected; and (c) − (a): +1" in line


def test_without_reports_or_marks_nothing_is_written(tmp_path):
    page = tmp_path / "ablations.md"
    page.write_text("no marks")
    with pytest.raises(UserError, match="holds no report"):
        write_book(tmp_path / "none", page)
    report(tmp_path / "one" / "encoder_size-demo")
    with pytest.raises(UserError, match="lacks its marks"):
        write_book(tmp_path / "one", page)
    assert page.read_text() == "no marks"
