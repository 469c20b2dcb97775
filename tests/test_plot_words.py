"""Words beside points stay apart from each other and from the points."""

import itertools

import numpy as np
import pytest

from imagen.plot_words import Words, place, stretch

pytest.importorskip("matplotlib")


def test_words_cover_neither_each_other_nor_the_points():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = np.random.default_rng(0).random((20, 2))
    axes.scatter(*points.T)
    figure.draw_without_rendering()
    place(axes, [Words(f"no {i}", [tuple(map(float, at))], {"fontsize": 8}) for i, at in enumerate(points)], points)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert not any(box.contains(*at) for box in boxes for at in axes.transData.transform(points))


def test_words_keep_off_lines():
    obstacles = np.array(stretch([(0.0, 0.0), (1.0, 2.0), (1.0, 0.0)]))
    assert {(0.0, 0.0), (1.0, 2.0), (1.0, 0.0)} <= {tuple(map(float, at)) for at in obstacles}
    on_first = obstacles[np.isclose(obstacles[:, 1], 2 * obstacles[:, 0])]
    assert np.diff(np.unique(on_first[:, 0])).max() < 0.1
    assert stretch([(3.0, 4.0)]) == [(3.0, 4.0)] * 3
