"""The paper's chart (figure 3, A.15 and A.16): preference rates by kind of prompt, with their intervals."""

from collections.abc import Sequence
from typing import Any

from imagen.files import Location, atomic_write
from imagen.human_eval.intervals import Share
from imagen.human_eval.table import ALL, Row

TITLES = {"alignment": "Image-text alignment", "quality": "Image fidelity"}
COLOURS = {"a": "#1f5fae", "b": "#e08a1e"}
INK, FAINT, LINE = "#1c1c1c", "#5d5d5d", "#dcdcdc"


def save_figure(rows: Sequence[Row], names: dict[str, str], folder: Location) -> None:
    """Write ``preferences.png`` and ``.svg``."""
    import matplotlib

    with matplotlib.rc_context({"font.size": 10, "svg.hashsalt": "imagen", "svg.fonttype": "none"}):
        figure = draw(rows, names)
        for form, how in {"png": {"dpi": 160}, "svg": {"metadata": {"Date": None}}}.items():
            with atomic_write(folder / f"preferences.{form}") as temporary:
                figure.savefig(temporary, format=form, **how)


def draw(rows: Sequence[Row], names: dict[str, str]) -> Any:
    """The matplotlib figure: a panel a question, two bars a kind, 'all' first."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row.kind for row in rows))
    figure = Figure(figsize=(9.5, 1.9 + 0.52 * len(kinds)))
    figure.set_layout_engine("constrained", wspace=0.06)  # else one panel's 100 % touches the other's 0 %
    panels = figure.subplots(1, len(TITLES), sharey=True)
    for axes, (question, title) in zip(panels, TITLES.items(), strict=True):
        for row in (row for row in rows if row.question == question):
            place = kinds.index(row.kind) + (0.0 if row.kind == ALL else 0.35)  # 'all' stands apart
            for model, offset in (("a", -0.18), ("b", 0.18)):
                _bar(axes, place + offset, getattr(row, model), COLOURS[model])
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 25))
        axes.xaxis.set_major_formatter("{x:.0f}%")
        axes.grid(axis="x", color=LINE)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, colors=INK)
        for side in ("top", "right", "bottom"):
            axes.spines[side].set_visible(False)
    ticks = [i + (0.0 if kind == ALL else 0.35) for i, kind in enumerate(kinds)]
    panels[0].set_yticks(ticks, [_plain(kind) for kind in kinds])
    panels[0].set_ylim(max(ticks) + 0.6, -0.6)
    handles = [panels[0].barh(0, 0, color=colour) for colour in COLOURS.values()]
    labels = [f"{_plain(names[model])} preferred" for model in COLOURS]
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
    most = max(row.raters for row in rows)
    below = f"share of answers, the rest indifferent; lines: 95 % intervals over raters ({most} raters)"
    figure.supxlabel(below, fontsize=9, color=FAINT)
    return figure


def _plain(words: str) -> str:
    """So that matplotlib does not take what is between dollars for a formula."""
    return words.replace("$", r"\$")


def _bar(axes: Any, place: float, share: Share, colour: str) -> None:
    bounds, places = [100 * share.low, 100 * share.high], [place, place]
    axes.barh(place, 100 * share.value, height=0.34, color=colour)
    axes.plot(bounds, places, color=INK, linewidth=1.2, marker="|", markersize=5)
