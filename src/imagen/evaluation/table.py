"""Points as a table and as the curve along their axis."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen.files import atomic_write
from imagen.plot_words import Words, place, stretch

log = logging.getLogger(__name__)

FIDELITY = ("fid", "fd_dinov2", "cmmd", "kid", "fd_pixel")
ALIGNMENT = ("clip_score", "retrieval_top10", "heldout_top10", "heldout_cosine")
"""The axes of the paper's figure 4, and what stands in for them without weights: of each the first that is there."""

PAIR = (FIDELITY, ALIGNMENT)

KEYS = ("extractor", "weights", "resize")
SAMPLING = ("guidance", "weight", "sampler", "steps", "threshold", "augmentation_level")


def write_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One line a point: what was set, how many pictures, every figure, and of each kind of prompts those it has."""
    axes = list(rows[0]["point"])
    figures = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    by_kind = {(kind, name): None for row in rows for kind, own in row["kinds"].items() for name in own}
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*axes, "drawn", "real", "seed", *figures, *(f"{name} ({kind})" for kind, name in by_kind)])
        for row in rows:
            values = [row["metrics"].get(name, "") for name in figures]
            values += [row["kinds"].get(kind, {}).get(name, {}).get("value", "") for kind, name in by_kind]
            writer.writerow([*row["point"].values(), row["drawn"], row["real"], row["seed"], *values])


def write_figures(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One line a figure, with all that makes it comparable: n, extractor, hash, resize, how it was drawn, the seed."""
    axes = list(rows[0]["point"])
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [*axes, "metric", "figure", "kind", "value", "n", "real", *KEYS, "settings", *SAMPLING, "sampling_seed"]
        )
        for row in rows:
            found = [(name, "", value, row["n"][name]) for name, value in row["metrics"].items()]
            found += [
                (name, kind, one["value"], one["n"]) for kind, own in row["kinds"].items() for name, one in own.items()
            ]
            for figure, kind, value, n in found:
                metric = row["metric_of"][figure]
                known = row["provenance"][metric]
                others = "; ".join(f"{key} {said}" for key, said in known.items() if key not in KEYS)
                own = [metric, figure, kind, value, n, row["real"]]
                made_with = [*(known.get(key, "") for key in KEYS), others]
                drawn_with = [*(_of_stages(row["sampling"], key) for key in SAMPLING), row["seed"]]
                writer.writerow([*row["point"].values(), *own, *made_with, *drawn_with])


def _of_stages(sampling: dict[str, dict[str, Any]], key: str) -> str:
    return "; ".join(f"{slot} {said[key]}" for slot, said in sampling.items() if said.get(key) not in (None, ""))


def write_curve(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The figures of the points against each other, a line for each value of all axes but the first.

    Nothing is drawn of a single point, of figures that no pair is of, or without matplotlib.
    """
    pair = [next((name for name in names if all(name in row["metrics"] for row in rows)), "") for names in PAIR]
    if len(rows) < 2 or not all(pair):
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
    words: list[Words] = []
    obstacles: list[tuple[float, float]] = []
    for values, line in lines.items():
        at = [(row["metrics"][pair[1]], row["metrics"][pair[0]]) for row in line]
        label = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in zip(others, values, strict=True))
        (drawn,) = plot.plot(*zip(*at, strict=True), marker="o", label=label or None)
        style = {"fontsize": 8, "color": drawn.get_color()}
        words += [Words(str(row["point"][axis]), [where], style) for row, where in zip(line, at, strict=True)]
        obstacles += stretch(at)
    better = rows[0]["directions"]
    y, x = (f"{name} ({better[name]} is better)" for name in pair)
    plot.set(xlabel=x, ylabel=y, title=f"along {axis}")
    plot.grid(alpha=0.3)
    plot.margins(0.12)  # where words find room
    if others:
        plot.legend()
    figure.draw_without_rendering()
    place(plot, words, np.array(obstacles, dtype=float))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
