"""The sheet has the same prompts below each other: all lines, or of a line that is alone all its points."""

from pathlib import Path

import pytest
from small_sweep import asked, make_sweep

from imagen.report import gather
from imagen.report.sheet import sheets_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_sweep(tmp_path, {"layers_0": 0.0, "layers_6": 0.1}, 1)
    return tmp_path


def shown(root: Path, variants: str) -> list[tuple[str, list[str]]]:
    sweep = gather(asked(root, f"variant={variants}", "seed=0"))
    sheets, unseen = sheets_of(sweep.study, sweep.measured)
    assert unseen == []
    return [(sheet.at, sheet.labels) for sheet in sheets]


def test_lines_are_beside_each_other_at_each_value_of_the_axis(root):
    both = ["layers_0", "layers_6"]
    assert sorted(shown(root, "layers_0,layers_6")) == [("1", both), ("2", both), ("4", both)]


def test_of_a_line_that_is_alone_the_values_of_the_axis_are_beside_each_other(root):
    assert shown(root, "layers_6") == [("", ["weight 1", "weight 2", "weight 4"])]
