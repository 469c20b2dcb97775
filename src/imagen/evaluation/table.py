"""Points as a table and as the curve along their axis."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen.files import atomic_write

log = logging.getLogger(__name__)

PAIRS = (("fid", "clip_score"), ("fd_dinov2", "clip_score"), ("fd_pixel", "retrieval_top10"))
"""Fidelity against alignment, the axes of the paper's figure 4, and what stands in for them without weights."""


def write_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One line a point: what was set, how many pictures, every figure."""
    axes = list(rows[0]["point"])
    figures = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*axes, "drawn", "real", "seed", *figures])
        for row in rows:
            values = [row["metrics"].get(name, "") for name in figures]
            writer.writerow([*row["point"].values(), row["drawn"], row["real"], row["seed"], *values])


def write_curve(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The figures of the points against each other, a line for each value of all axes but the first.

    Nothing is drawn of a single point, of figures that no pair is of, or without matplotlib.
    """
    pair = next((pair for pair in PAIRS if all(set(pair) <= set(row["metrics"]) for row in rows)), None)
    if len(rows) < 2 or pair is None:
        return
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("no curve.png without matplotlib: pip install 'imagen-lab[report]'")
        return
    axis, *others = rows[0]["point"]
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    lines: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault(tuple(row["point"][key] for key in others), []).append(row)
    for values, line in lines.items():
        x, y = ([row["metrics"][name] for row in line] for name in pair[::-1])
        label = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in zip(others, values, strict=True))
        plot.plot(x, y, marker="o", label=label or None)
        for row, at in zip(line, zip(x, y, strict=True), strict=True):
            plot.annotate(str(row["point"][axis]), at, textcoords="offset points", xytext=(4, 4), fontsize=8)
    plot.set(xlabel=pair[1], ylabel=pair[0], title=f"along {axis}")
    plot.grid(alpha=0.3)
    if others:
        plot.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
