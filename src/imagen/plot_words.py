"""Words beside the points of a plot, where they cover neither points, lines nor each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

GAP = 3.0
"""Points between a mark and its words."""


@dataclass(frozen=True)
class Words:
    """``text`` to be put beside one of ``at``, the earlier the better, in data coordinates."""

    text: str
    at: Sequence[tuple[float, float]]
    style: dict[str, Any]


def stretch(at: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Obstacles: the points that a line joins, and others between them. A point's mark is larger than a place on it."""
    between = [
        (a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])) for a, b in pairwise(at) for t in np.linspace(0, 1, 15)
    ]
    return [*at, *at, *at, *between]


def place(axes: Any, words: Sequence[Words], obstacles: Float[np.ndarray, "n 2"]) -> None:
    """Put each where it is in the way of least, one after the other: first come, first served.

    ``obstacles`` are points in data coordinates that should stay free. The layout must be settled before.
    """
    figure = axes.figure
    renderer, scale = figure.canvas.get_renderer(), figure.dpi / 72
    inside = axes.get_window_extent(renderer)
    points = axes.transData.transform(obstacles)
    taken: list[Any] = []
    for one in words:
        best, least, box = None, float("inf"), None
        label = axes.annotate(
            one.text, one.at[0], (0, 0), textcoords="offset points", annotation_clip=False, **one.style
        )
        label.set_in_layout(False)
        for rank, at in enumerate(one.at):
            label.xy = at
            for distance in (1.0, 2.5, 4.5):
                for across, down in ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (1, -1), (0, -1), (-1, -1)):
                    _move(label, across, down, distance * GAP + 2)
                    extent = label.get_window_extent(renderer)
                    cost = _cost(extent, taken, points, inside, scale) + 0.4 * rank + 0.5 * distance
                    if cost < least:
                        best, least, box = (at, across, down, distance), cost, extent
        assert best is not None
        label.xy = best[0]
        _move(label, *best[1:3], best[3] * GAP + 2)
        taken.append(box)


def _move(label: Any, across: int, down: int, distance: float) -> None:
    diagonal = 0.75 if across and down else 1.0
    label.set_position((across * distance * diagonal, down * distance * diagonal))
    label.set_horizontalalignment({-1: "right", 0: "center", 1: "left"}[across])
    label.set_verticalalignment({-1: "top", 0: "center", 1: "bottom"}[down])


def _cost(box: Any, taken: Sequence[Any], points: np.ndarray, inside: Any, scale: float) -> float:
    """Obstacles that are covered, words that are, and how much hangs out of the axes."""
    covered = (
        (points[:, 0] > box.x0 - scale)
        & (points[:, 0] < box.x1 + scale)
        & (points[:, 1] > box.y0 - scale)
        & (points[:, 1] < box.y1 + scale)
    )
    over = sum(box.overlaps(other) for other in taken)
    out = max(0, box.x1 - inside.x1, inside.x0 - box.x0) + max(0, box.y1 - inside.y1, inside.y0 - box.y0)
    return float(covered.sum()) + 12 * over + out / scale
