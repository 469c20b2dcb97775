"""The page of what sweeps have shown: copies what reports wrote, and tells of all that it has."""

import json

import pytest

from imagen.errors import UserError
from imagen.report.book import BEGIN, END, write_book


def report(folder, sentence="holds: 1 (0.5 to 1.5)", missing=()):
    folder.mkdir(parents=True)
    told = {
        "paper": "figure 4a",
        "claim": "larger is better",
        "verdicts": [{"sentence": sentence}, {"sentence": "undecided: seconds"}],
        "rows": 9,
        "missing": list(missing),
        "command": f"python train.py -m ablation={folder.name}",
    }
    (folder / "verdict.json").write_text(json.dumps(told))
    (folder / "table.csv").write_text("variant,seed\na,0\n")
    (folder / "figure.png").write_bytes(b"png")


def test_what_was_told_before_stays(tmp_path):
    page = tmp_path / "docs" / "ablations.md"
    page.parent.mkdir()
    page.write_text(f"# Ablations\n\n{BEGIN}\nwhat was\n{END}\n\nMore.\n")
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
    assert (page.parent / "ablations" / "encoder_size-demo.csv").read_text() == "variant,seed\na,0\n"


def test_without_reports_or_marks_nothing_is_written(tmp_path):
    page = tmp_path / "ablations.md"
    page.write_text("no marks")
    with pytest.raises(UserError, match="holds no report"):
        write_book(tmp_path / "none", page)
    report(tmp_path / "one" / "encoder_size-demo")
    with pytest.raises(UserError, match="lacks its marks"):
        write_book(tmp_path / "one", page)
    assert page.read_text() == "no marks"
