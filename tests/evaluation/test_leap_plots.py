"""LEAP's plots: moments are those of the angles, and what is drawn can be read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_leap import degrees

from facetrain.evaluation import leap_plots
from facetrain.evaluation.leap_plots import Group, Line


@pytest.fixture
def figures(monkeypatch):
    drawn = []
    original = leap_plots.svg
    monkeypatch.setattr(leap_plots, "svg", lambda figure, salt: (drawn.append(figure), original(figure, salt))[1])
    return drawn


@given(st.dictionaries(st.integers(0, 179), st.integers(1, 50), min_size=1))
def test_moments_of_a_histogram(found):
    counts = np.zeros(180, np.int64)
    counts[list(found)] = list(found.values())
    angles = np.repeat(np.arange(180) + 0.5, counts)
    np.testing.assert_allclose(Group("head", counts).moments, (angles.mean(), angles.std()), atol=1e-9)
    assert Group("head", counts).shares.sum() == pytest.approx(100)


def test_a_group_without_angles_has_no_moments():
    empty = Group("tail", np.zeros(180, np.int64))
    assert np.isnan(empty.moments).all()
    assert empty.shares.sum() == 0


def test_degrees_and_radians_are_both_written():
    assert leap_plots.spread_text(26.53, 1.72) == "26.5° ± 1.7° (0.463 ± 0.030 rad)"


@pytest.mark.parametrize("mean", [5, 40, 90, 170])
def test_legends_of_histograms_stand_above_what_is_drawn(figures, mean):
    groups = [Group("head", np.array(degrees(mean, 3, 500))), Group("tail", np.array(degrees(mean, 12, 500)))]
    leap_plots.histograms([("First", groups), ("End", groups[:1])], "salt")
    figure = figures.pop()
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        highest = max(thing.get_window_extent().y1 for thing in [*axes.patches, *axes.lines])
        assert axes.bbox.y0 < highest <= legend.y0
        assert axes.bbox.x0 <= legend.x0
        assert legend.y1 <= axes.bbox.y1
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_long_runs_show_no_more_curves_than_can_be_told_apart(figures):
    rows = [(str(epoch), [Group("head", np.array(degrees(50, 5, 100)))]) for epoch in range(1, 31)]
    leap_plots.ridges(rows, "salt", mark=20)
    (axes,) = figures.pop().axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 14
    assert (labels[0], labels[-1]) == ("1", "30")
    (line,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    above = [label for label, tick in zip(labels, axes.get_yticks(), strict=True) if tick > line.get_ydata()[0]]
    assert int(above[-1]) <= 20 < int(labels[len(above)])


def test_panels_of_spreads_have_one_scale_and_degrees_beside(figures):
    lines = [Line("a", [1, 2, 3], [np.nan, 0.1, 0.2], 0), Line("b", [1, 2], [np.nan, np.nan], 1)]
    leap_plots.spreads([("Head", lines), ("Tail", [Line("a", [1], [0.5], 0, dashed=True)])], 2, "salt")
    first, second = figures.pop().axes
    assert first.get_ylim() == second.get_ylim()
    assert first.get_ylim()[1] > 0.5
    assert first.lines[0].get_xydata().tolist() == [[2, 0.1], [3, 0.2]]
    (degrees_axis,) = first.child_axes
    assert degrees_axis.get_ylim()[1] == pytest.approx(np.degrees(first.get_ylim()[1]))


def test_head_and_tail_differ_in_more_than_colour(figures):
    points = np.random.default_rng(0).normal(size=(6, 2))
    leap_plots.people_map(points, ["H1", "H1", "H2", "T1", "T1", "T1"], np.array([0, 0, 1, 0, 0, 0]), "salt")
    (axes,) = figures.pop().axes
    assert [len(one.get_offsets()) for one in axes.collections] == [2, 1, 3]
    circle, other, cross = (one.get_paths()[0].vertices for one in axes.collections)
    assert len(circle) == len(other) > len(cross)
    colours = [tuple(one.get_edgecolor()[0]) for one in axes.collections]
    assert colours[0] == colours[2] != colours[1]
    assert [text.get_text() for text in axes.texts] == ["H1", "H2", "T1"]
    shown = {group: Group(group, np.ones(180, np.int64)).style for group in ("head", "tail")}
    assert shown["head"]["linestyle"] != shown["tail"]["linestyle"]
