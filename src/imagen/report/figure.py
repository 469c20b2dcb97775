"""A sweep as the paper draws it: one figure against another, a line a variant; and the held-out loss in pairs."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from imagen.ablation.study import Study
from imagen.ablation.table import COST, Row
from imagen.files import atomic_write
from imagen.plot_words import Words, place, stretch
from imagen.report.directions import Directions, called, directions_of, on_axis
from imagen.report.lines import TIME, Line, along, curves_of, lines_of, pair_of, pareto
from imagen.report.measured import Measured

LOSS = "heldout_loss"

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8528f", "#333333", "#a87900", "#3f9fdb", "#7b3fa0")
"""Told apart by the colour-blind too (after Okabe and Ito 2008), all dark enough for words on white."""

MARKERS = "osD^vPX*"
INK, FAINT, LINE, FRONT = "#1c1c1c", "#5d5d5d", "#e2e2e2", "#c9c9c9"
SETTINGS = {"font.size": 10, "svg.hashsalt": "imagen", "svg.fonttype": "none", "text.parse_math": False}


def save_figure(study: Study, rows: Sequence[Row], measured: Sequence[Measured], folder: Path) -> str:
    """Write ``figure.png`` and ``.svg``; what is drawn, in words. '' where there is nothing to draw, and no file."""
    import matplotlib

    with matplotlib.rc_context(cast(Any, SETTINGS)):
        figure, said = draw(study, rows, measured)
        for form, how in {"png": {"dpi": 160}, "svg": {"metadata": {"Date": None}}}.items():
            path = folder / f"figure.{form}"
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            with atomic_write(path) as temporary:
                figure.savefig(temporary, format=form, **how)
    return said


def draw(study: Study, rows: Sequence[Row], measured: Sequence[Measured]) -> tuple[Any, str]:
    """The matplotlib figure, and what it shows in words; None and '' where the rows have none of its figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x, y, lines = _lines(study, rows, measured)
    directions = directions_of(measured)
    paired = len({row["variant"] for row in rows if LOSS in row}) > 1
    if not lines and not paired:
        return None, ""
    widths = [3.0] * bool(lines) + [1.9] * paired
    figure = Figure(figsize=(2.1 * sum(widths), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = iter(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])
    said = []
    if lines:
        panel = next(panels)
        said.append(_plot(panel, study, lines, (x, y), directions))
    if paired:
        _pairs(next(panels), study, [row for row in rows if LOSS in row], directions)
        said.append("right: of each seed the held-out loss on the same noise and levels, the mean as a bar and below")
    figure.suptitle(f"{study.name}, scale={study.scale}", x=0.01, ha="left", color=INK, fontweight="bold")
    figure.supxlabel(textwrap.fill("; ".join(said), round(14 * figure.get_figwidth())), fontsize=8, color=FAINT)
    if lines:
        figure.draw_without_rendering()  # settles the layout, which words are then put into
        _put_words(figure.axes[0], lines, values=_has_words(lines, study))
    return figure, "; ".join(said)


def _lines(study: Study, rows: Sequence[Row], measured: Sequence[Measured]) -> tuple[str, str, list[Line]]:
    """What is on either axis, and the lines."""
    x, y = study.plot["x"], study.plot["y"]
    if x == TIME and not any(y in row for row in rows):
        return x, y, curves_of(study, measured, y)
    pair = pair_of(study, rows)
    return (*pair, lines_of(study, rows, *pair)) if pair else (x, y, [])


def _plot(axes: Any, study: Study, lines: Sequence[Line], pair: tuple[str, str], directions: Directions) -> str:
    """The lines with their means and extremes over seeds; what they are, in words."""
    x, y = pair
    for i, line in enumerate(lines):
        xs, ys = (np.array([[s.mean, s.low, s.high] for s in some]).T for some in _spreads(line))
        many = len(line.marks) > 12
        marker = "" if many else MARKERS[i % len(MARKERS)]
        axes.plot(xs[0], ys[0], color=_colour(i), marker=marker, markersize=5, linewidth=1.6)
        if many:
            axes.fill_between(xs[0], ys[1], ys[2], color=_colour(i), alpha=0.15, linewidth=0)
        else:
            reach = {"xerr": [xs[0] - xs[1], xs[2] - xs[0]], "yerr": [ys[0] - ys[1], ys[2] - ys[0]]}
            axes.errorbar(xs[0], ys[0], **reach, fmt="none", ecolor=_colour(i), elinewidth=0.8, alpha=0.55)
    said = [_of_seeds(lines)]
    if _has_words(lines, study):
        said.append(f"at the points: {along(study)}")
    if front := pareto(lines, x, y, directions):
        xs, ys = [mark.x.mean for mark in front], [mark.y.mean for mark in front]
        axes.plot(xs, ys, color=FRONT, linewidth=7, zorder=0, solid_capstyle="round")
        axes.plot(xs, ys, linestyle="none", marker="o", markersize=11, markerfacecolor="none", markeredgecolor=FAINT)
        said.append("grey band and rings: the Pareto front of the means")
    axes.set_xlabel(called(x) if x in (*COST, *study.axes) else on_axis(x, directions), color=INK)
    axes.set_ylabel(on_axis(y, directions), color=INK)
    axes.margins(x=0.16, y=0.12)  # where words find room
    _plain_axes(axes)
    return "; ".join(said)


def _pairs(axes: Any, study: Study, rows: Sequence[Row], directions: Directions) -> None:
    """A dot a variant and seed, those of one seed joined; the means as bars, and below the variants' names."""
    variants = [variant for variant in study.variants if any(row["variant"] == variant for row in rows)]
    colours = {variant: _colour(i) for i, variant in enumerate(variants)}
    losses = {(row["variant"], row["seed"]): row[LOSS] for row in rows}  # one for all points of sampling
    seeds = sorted({row["seed"] for row in rows})
    for seed in seeds:
        there = [variant for variant in variants if (variant, seed) in losses]
        places, values = [variants.index(one) for one in there], [losses[one, seed] for one in there]
        axes.plot(places, values, color="#b0b0b0", linewidth=0.8, zorder=1)
        axes.scatter(places, values, color=[colours[one] for one in there], s=16, zorder=2)
    means = {one: np.mean([value for (name, _), value in losses.items() if name == one]) for one in variants}
    for i, (variant, mean) in enumerate(means.items()):
        axes.hlines(mean, i - 0.28, i + 0.28, color=colours[variant], linewidth=2.4, zorder=3)
    tilt = sum(map(len, variants)) > 34
    words = [f"{variant}\n{mean:.4g}" for variant, mean in means.items()]
    axes.set_xticks(range(len(variants)), words, rotation=30 if tilt else 0, ha="right" if tilt else "center")
    axes.set_xlim(-0.6, len(variants) - 0.4)
    axes.margins(y=0.14)
    axes.set_ylabel(on_axis(LOSS, directions), color=INK)
    _plain_axes(axes)


def _put_words(axes: Any, lines: Sequence[Line], *, values: bool) -> None:
    """Beside each line its label, and beside each mark its value; the labels first, which are the larger."""
    obstacles, labels, numbers = [], [], []
    for i, line in enumerate(lines):
        at = [(mark.x.mean, mark.y.mean) for mark in line.marks]
        bold, small = (
            {"fontsize": 9.5, "fontweight": "bold", "color": _colour(i)},
            {"fontsize": 7.5, "color": _colour(i)},
        )
        labels.append(Words(line.label, [at[-1], at[0], *at[1:-1]], bold))
        numbers += [Words(mark.at, [where], small) for mark, where in zip(line.marks, at, strict=True)]
        obstacles += stretch(at)
        for mark in line.marks:
            obstacles += [(x, mark.y.mean) for x in np.linspace(mark.x.low, mark.x.high, 7)]
            obstacles += [(mark.x.mean, y) for y in np.linspace(mark.y.low, mark.y.high, 7)]
    place(axes, [*labels, *(numbers if values else [])], np.array(obstacles, dtype=float))


def _has_words(lines: Sequence[Line], study: Study) -> bool:
    """Whether a line's points are told apart by words, not by where they are."""
    return study.plot["x"] not in study.axes and any(mark.at for line in lines for mark in line.marks)


def _spreads(line: Line) -> tuple[list[Any], list[Any]]:
    return [mark.x for mark in line.marks], [mark.y for mark in line.marks]


def _of_seeds(lines: Sequence[Line]) -> str:
    counts = {mark.y.n for line in lines for mark in line.marks}
    if counts == {1}:
        return "one seed"
    n = str(max(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"means of {n} seeds, bars from the least to the greatest"


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _plain_axes(axes: Any) -> None:
    axes.grid(color=LINE)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    for side in axes.spines.values():
        side.set_visible(False)
