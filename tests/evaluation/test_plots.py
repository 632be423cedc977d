"""The report's plots: what is drawn can be read."""

from __future__ import annotations

import dataclasses

import numpy as np
from made_up_results import made_up_result

from facetrain.evaluation import plots


def test_the_legend_of_a_histogram_stands_above_what_is_drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(
        plots, "_svg", lambda figure, salt, draw=plots._svg: (figures.append(figure), draw(figure, salt))
    )
    same = np.arange(600) < 300
    for scores in (np.linspace(-1, 1, 600), np.where(same, 0.6, 0.0) + np.linspace(-0.1, 0.1, 600)):
        result = dataclasses.replace(made_up_result(), scores=scores, same=same)
        plots.histogram("lfw", result, ("threshold of the best accuracy", 0.3))
        figure = figures.pop()
        figure.draw_without_rendering()
        (axes,) = figure.axes
        legend = axes.get_legend().get_window_extent()
        drawn = [patch.get_window_extent().y1 for patch in axes.patches]
        drawn += [line.get_window_extent().y1 for line in axes.lines]
        assert 0 < max(drawn) <= legend.y0
        assert axes.bbox.x0 <= legend.x0
        assert legend.x1 <= axes.bbox.x1
        assert legend.y1 <= axes.bbox.y1
