"""The figure draws the means of the rows, along the axis asked for, with words that cover each other nowhere."""

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from imagen.ablation.study import Point, read_study
from imagen.report import figure as figure_file
from imagen.report.directions import directions_of, on_axis
from imagen.report.figure import draw, save_figure
from imagen.report.lines import Spread, label_of, lines_of, pair_of, pareto, spread
from imagen.report.measured import Measured
from imagen.runs import RunFolder

WEIGHT = "base.guidance.weight"
BASIC = {"parameters": 10, "seconds": 60.0, "steps": 100}


@pytest.fixture
def study():
    found = read_study("encoder_size", "demo")
    return replace(found, variants={"a": {}, "b": {}}, axes={WEIGHT: [1, 2]}, plot={"x": "clip_score", "y": "fid"})


def row(variant, seed, weight, x, y, **more):
    return {"variant": variant, "seed": seed, WEIGHT: weight, "clip_score": x, "fid": y, **BASIC, **more}


def four(**more):
    """Two variants of two seeds, at two weights."""
    return [
        row(variant, seed, weight, i + weight + 2.0 * seed, 10.0 - i - seed, **more)
        for i, variant in enumerate("ab")
        for seed in (0, 1)
        for weight in (1, 2)
    ]


def test_the_mean_of_seeds_that_agree_is_theirs_and_is_drawn(study, tmp_path):
    assert spread([0.1] * 3) == Spread(0.1, 0.1, 0.1, 3)  # a sum of floats over three is above it
    rows = [row("a", seed, weight, 0.1, 0.7) for seed in range(3) for weight in (1, 2)]
    assert save_figure(study, rows, [], tmp_path)


def test_a_line_is_a_variant_and_a_mark_the_mean_over_its_seeds(study):
    first, second = lines_of(study, list(reversed(four())), "clip_score", "fid")
    assert (first.label, second.label) == ("a", "b")
    assert {mark.at: (mark.x, mark.y) for mark in first.marks} == {
        "1": (Spread(2.0, 1.0, 3.0, 2), Spread(9.5, 9.0, 10.0, 2)),
        "2": (Spread(3.0, 2.0, 4.0, 2), Spread(9.5, 9.0, 10.0, 2)),
    }


def test_a_line_runs_along_the_axis_that_is_drawn_and_is_called_by_the_others(study):
    axes = {WEIGHT: [1, 2], "base.threshold": ["none", "static"]}
    rows = [one | {"base.threshold": threshold} for threshold in ("none", "static") for one in four()]
    crossed = replace(study, axes=axes)
    assert [line.label for line in lines_of(crossed, rows, "clip_score", "fid")] == [
        "a, threshold none",
        "a, threshold static",
        "b, threshold none",
        "b, threshold static",
    ]
    alone = replace(crossed, variants={"default": {}})
    assert label_of(alone, rows[0] | {"variant": "default"}) == "threshold none"
    along = replace(study, axes={"base.sampler": ["ddim", "ddpm"], WEIGHT: [1, 2]}, plot={"x": WEIGHT, "y": "fid"})
    rows = [one | {"base.sampler": "ddim"} for one in four()]
    line = lines_of(along, rows, *pair_of(along, rows))[0]
    assert line.label == "a, sampler ddim"
    assert [mark.x.mean for mark in line.marks] == [1, 2]


def test_what_is_missing_has_what_stands_in_for_it(study):
    assert pair_of(study, four()) == ("clip_score", "fid")
    demo = [{**BASIC, "variant": "a", "retrieval_top10": 0.5, "fd_pixel": 3.0}]
    assert pair_of(study, demo) == ("retrieval_top10", "fd_pixel")
    assert pair_of(study, [{"fd_pixel": 3.0}]) is None


def test_the_front_is_what_nothing_beats(study):
    rows = [
        row("a", 0, 1, 0.30, 10.0),
        row("a", 0, 2, 0.20, 12.0),  # worse in both
        row("b", 0, 1, 0.35, 11.0),
        row("b", 0, 2, 0.25, 10.0),  # as good in one
    ]
    ways = {"clip_score": "higher", "fid": "lower"}
    front = pareto(lines_of(study, rows, "clip_score", "fid"), "clip_score", "fid", ways)
    assert [(mark.x.mean, mark.y.mean) for mark in front] == [(0.30, 10.0), (0.35, 11.0)]
    cheap = pareto(lines_of(study, rows, "fid", "clip_score"), "fid", "clip_score", ways)
    assert [(mark.x.mean, mark.y.mean) for mark in cheap] == [(10.0, 0.30), (11.0, 0.35)]


def test_both_panels_have_what_the_rows_say(study):
    rows = [one | {"heldout_loss": 0.1 + one["seed"] + (one["variant"] == "b")} for one in four()]
    figure, said = draw(study, rows, [])
    plot, pairs = figure.axes
    assert plot.get_ylabel() == on_axis("fid", {}) == "FID"
    assert {text.get_text() for text in plot.texts} == {"a", "b", "1", "2"}
    assert [label.get_text() for label in pairs.get_xticklabels()] == ["a\n0.6", "b\n1.6"]
    joined = [line.get_ydata().tolist() for line in pairs.lines if len(line.get_xdata()) == 2]
    assert joined == [pytest.approx([0.1, 1.1]), pytest.approx([1.1, 2.1])]
    assert "means of 2 seeds" in said
    assert "Pareto" not in said, "which way these figures are better is not told"


def test_the_front_is_drawn_where_it_is_told_which_way_is_better(study, monkeypatch):
    monkeypatch.setattr(figure_file, "directions_of", lambda _: {"clip_score": "higher", "fid": "lower"})
    rows = [row("a", 0, 1, 0.30, 10.0), row("a", 0, 2, 0.20, 12.0), row("b", 0, 1, 0.35, 11.0)]
    figure, said = draw(study, rows, [])
    assert "grey band and rings: the Pareto front of the means" in said
    (rings,) = [line for line in figure.axes[0].lines if line.get_markersize() == 11]
    assert (rings.get_xdata().tolist(), rings.get_ydata().tolist()) == ([0.30, 0.35], [10.0, 11.0])


def test_without_figures_there_is_none(study, tmp_path):
    (tmp_path / "figure.png").touch()
    assert save_figure(study, [{"variant": "a", "seed": 0, WEIGHT: 1, **BASIC}], [], tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def test_which_way_is_better_is_what_the_metric_said():
    point = Point("a", 0, OmegaConf.create({}), RunFolder(Path()), Path())
    told = [{"directions": {"clip_score": "higher", "fid": "lower"}}, {}]
    found = directions_of([Measured(point, [], told, {})])
    assert (found["clip_score"], found["fid"], found["seconds"]) == ("higher", "lower", "lower")
    assert "heldout_p" not in found
    assert on_axis("clip_score", found) == "CLIP score (higher is better)"
    assert on_axis("heldout_p", found) == "heldout p"
    assert directions_of([]).keys() == {"parameters", "seconds", "seconds_per_step", "steps", "val/loss"}


def test_without_directions_there_is_no_front(study):
    assert pareto(lines_of(study, four(), "clip_score", "fid"), "clip_score", "fid", {"fid": "lower"}) == []
