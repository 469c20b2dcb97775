"""Rows that a report kept: which points they make whole, and tables that are none, damaged or of another version."""

import csv
from dataclasses import replace

import pytest

from imagen.ablation.finished import read_finished
from imagen.ablation.study import read_study
from imagen.ablation.table import write_rows
from imagen.errors import UserError

WEIGHT = "base.guidance.weight"


@pytest.fixture
def study():
    return replace(read_study("encoder_size", "demo"), axes={WEIGHT: [1, 2, 4]})


def rows_of(study, variant="layers_0", seed=0, evaluation="encoder_size-demo", **more):
    who = {"ablation": study.name, "scale": study.scale, "variant": variant, "seed": seed}
    who |= {"run": f"12345678-s{seed}", "evaluation": evaluation}
    measured = {"parameters": 20, "seconds": 91.5, "machine": "a CPU", "drawn": 448, "fd_pixel": 2.0}
    return [{**who, WEIGHT: weight, **measured, **more} for weight in study.axes.get(WEIGHT, [None])]


def test_a_point_is_whole_with_a_row_at_every_point_of_sampling(study, tmp_path):
    whole, half = rows_of(study), rows_of(study, seed=1)
    write_rows(study, [*whole, *half[:2]], tmp_path / "kept.csv")
    found = read_finished(study, tmp_path / "kept.csv")
    assert found.points == {"layers_0-12345678-s0-encoder_size-demo": whole}
    assert found.halves == [f"rows of layers_0-s1 in {tmp_path}/kept.csv lack {WEIGHT}=4"]
    fewer = replace(study, axes={WEIGHT: [4, 1]})
    assert [row[WEIGHT] for row in read_finished(fewer, tmp_path / "kept.csv").points.popitem()[1]] == [4, 1]
    assert read_finished(study, None).points == {}


def test_without_axes_a_point_has_one_row(study, tmp_path):
    alone = replace(study, axes={})
    (row,) = [{name: value for name, value in row.items() if name != WEIGHT} for row in rows_of(alone)]
    write_rows(alone, [row], tmp_path / "kept.csv")
    assert read_finished(alone, tmp_path / "kept.csv").points == {"layers_0-12345678-s0-encoder_size-demo": [row]}


def test_the_same_run_measured_otherwise_or_for_another_ablation_is_another_point(study, tmp_path):
    own, otherwise = rows_of(study), rows_of(study, evaluation="encoder_size-demo-89abcdef", fd_pixel=3.0)
    others = [row | {"ablation": "threshold", "evaluation": "threshold-demo"} for row in own]
    write_rows(study, [*own, *otherwise, *others], tmp_path / "kept.csv")
    assert read_finished(study, tmp_path / "kept.csv").points == {
        "layers_0-12345678-s0-encoder_size-demo": own,
        "layers_0-12345678-s0-encoder_size-demo-89abcdef": otherwise,
    }


def test_a_table_of_another_ablation_alone_is_refused(study, tmp_path):
    write_rows(study, [row | {"ablation": "threshold"} for row in rows_of(study)], tmp_path / "kept.csv")
    with pytest.raises(UserError, match=r"has rows of threshold-demo alone, none of encoder_size-demo"):
        read_finished(study, tmp_path / "kept.csv")
    write_rows(study, [], tmp_path / "kept.csv")
    assert read_finished(study, tmp_path / "kept.csv").points == {}


@pytest.mark.parametrize("axes", [{}, {WEIGHT: [1, 2, 4], "base.wind": [0]}, {"base.wind": [1, 2, 4]}])
def test_rows_of_other_axes_are_refused(study, tmp_path, axes):
    write_rows(study, rows_of(study), tmp_path / "kept.csv")
    with pytest.raises(UserError, match=rf"is of {WEIGHT}, and encoder_size-demo of (no axes|.*base\.wind): leave"):
        read_finished(replace(study, axes=axes), tmp_path / "kept.csv")


def test_two_rows_of_one_point_are_refused(study, tmp_path):
    write_rows(study, [*rows_of(study), rows_of(study)[1]], tmp_path / "kept.csv")
    with pytest.raises(UserError, match=f"has two rows of layers_0-s0 at {WEIGHT}=2: leave one"):
        read_finished(study, tmp_path / "kept.csv")


@pytest.mark.parametrize(
    "damage",
    [
        lambda cells: [*cells, "1"],
        lambda cells: cells[:-1],
        lambda cells: ["none" if cell == "448" else cell for cell in cells],
        lambda cells: ["a hat" if cell == "2.0" else cell for cell in cells],
        lambda cells: ["" if cell == "0" else cell for cell in cells],
    ],
)
def test_a_damaged_row_is_named_by_its_line(study, tmp_path, damage):
    write_rows(study, rows_of(study), tmp_path / "kept.csv")
    with (tmp_path / "kept.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    lines[2] = damage(lines[2])
    with (tmp_path / "kept.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows(lines)
    with pytest.raises(UserError, match=r"kept\.csv is damaged in line 3"):
        read_finished(study, tmp_path / "kept.csv")


def test_what_is_no_table_is_refused(study, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_finished(study, tmp_path / "none.csv")
    for text in ("", "prompt,category\nhi,a\n", "variant,seed,run,fd_pixel\nlayers_0,0,12345678-s0,1.5\n"):
        (tmp_path / "other.csv").write_text(text)
        with pytest.raises(UserError, match="no table of a report, whose columns begin with ablation, scale"):
            read_finished(study, tmp_path / "other.csv")
