"""Plots of several models: what is drawn can be told apart, and a user's words stay words."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_runs import made_up_ijbc, made_up_megaface

from facetrain.evaluation import comparison_plots as plots


@pytest.fixture
def figures(monkeypatch):
    made = []
    monkeypatch.setattr(plots, "svg", lambda figure, salt: made.append(figure) or "")
    return made


def test_no_two_of_eighteen_rows_look_alike():
    looks = {(style["color"], str(style["linestyle"])) for style in map(plots.style, range(18))}
    assert len(looks) == 18
    assert plots.style(18) == plots.style(0)


def test_a_roc_is_drawn_as_it_is(figures):
    curve = made_up_ijbc().curves["roc"]
    plots.roc_overlay("IJB-C", [("a", 0, curve), ("b", 3, made_up_ijbc(seed=1).curves["roc"])], few=1e-4)
    (axes,) = figures[0].axes
    line, other = axes.lines
    x, y = line.get_data()
    assert line.get_drawstyle() == "steps-post"
    assert (line.get_color(), other.get_color()) == (plots.style(0)["color"], plots.style(3)["color"])
    drawn = [(float(a), float(b)) for a, b in zip(x, y, strict=True) if a > x[0]]
    assert drawn == [(a, b) for a, b in zip(curve.x, curve.y, strict=True) if a > x[0]]
    assert axes.get_xlim() == (1e-5, 1)
    assert axes.get_ylim()[0] <= y[0]
    (band,) = axes.patches
    assert band.get_extents().x1 == axes.transData.transform((1e-4, 0))[0]


def test_scores_of_each_row_have_a_panel_on_one_axis(figures):
    rows = [(f"run {number}", number, made_up_ijbc(seed=number).histogram) for number in range(3)]
    plots.score_panels("IJB-C", rows)
    several = figures[0].axes
    assert [axes.get_title(loc="left") for axes in several] == ["run 0", "run 1", "run 2"]
    assert len({axes.get_xlim() for axes in several}) == 1
    for axes, (_, _, held) in zip(several, rows, strict=True):
        filled, genuine, impostor = (patch.get_data() for patch in axes.patches)
        np.testing.assert_allclose(genuine.values, 100 * np.array(held.genuine) / sum(held.genuine))
        np.testing.assert_allclose(impostor.values, 100 * np.array(held.impostor) / sum(held.impostor))
        assert filled.values.sum() == pytest.approx(100)


def test_intervals_and_cmc_are_drawn_in_per_cent(figures):
    plots.interval_plot("x", [("a", 0, 0.5, (0.4, 0.7)), ("b", 1, 0.6, None)])
    plots.cmc_overlay("x", [("a", 0, made_up_megaface().curves["cmc"])])
    intervals, cmc = (figure.axes[0] for figure in figures)
    assert [label.get_text() for label in intervals.get_yticklabels()] == ["a", "b"]
    lines = [line.get_xdata() for line in intervals.lines if line.get_linewidth() > 2]
    np.testing.assert_allclose(lines, [[40, 70]])
    np.testing.assert_allclose(cmc.lines[0].get_ydata(), [81.41, 90, 95])
    assert [tick.get_text() for tick in cmc.get_xticklabels()] == ["1", "2", "5", "10", "20", "50", "100"]


def test_a_users_words_stay_words():
    long = "a_very_long_name_of_a_run_that_differs_only_at_its_end_1"
    lines = [(name, number, [1, 2], [3, 4]) for number, name in enumerate((r"$\frac{1}$", "_hidden", long, "<script>"))]
    drawn = plots.steps_overlay(r"loss $\broken", "$", lines)
    for text in (r"$\frac{1}$", "_hidden", "&lt;script&gt;", "a_very_long_name_o…only_at_its_end_1"):
        assert text in drawn
    assert "<script" not in drawn
