"""The scoring core against scikit-learn and against definitions written out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve
from sklearn.model_selection import KFold

from facetrain.errors import InputError
from facetrain.evaluation.scores import fpr_text, roc, ten_fold_accuracy, tpr_at_fpr


@st.composite
def scored_pairs(draw, low=2, high=60):
    """Scores on a coarse grid, so that ties are common, with both kinds of pairs."""
    count = draw(st.integers(low, high))
    levels = draw(st.integers(1, 40))
    scores = np.array(draw(st.lists(st.integers(-levels, levels), min_size=count, max_size=count))) / levels
    same = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    same[0], same[-1] = True, False
    return scores, same


@given(scored_pairs(), st.booleans())
@settings(deadline=None, max_examples=150)
def test_roc_equals_scikit_learn(pairs, drop):
    scores, same = pairs
    ours = roc(scores, same, drop_collinear=drop)
    fpr, tpr, thresholds = roc_curve(same, scores, drop_intermediate=drop)
    np.testing.assert_array_equal(ours.fpr, fpr)
    np.testing.assert_array_equal(ours.tpr, tpr)
    np.testing.assert_array_equal(ours.thresholds, thresholds)


@given(scored_pairs(), st.floats(1e-6, 1.0))
@settings(deadline=None, max_examples=150)
def test_strict_is_the_best_rate_that_keeps_the_promise(pairs, fpr):
    scores, same = pairs
    (cell,) = tpr_at_fpr(scores, same, [fpr], "strict")
    candidates = [np.inf, *np.unique(scores)]
    allowed = [t for t in candidates if (scores[~same] >= t).mean() <= fpr]
    assert cell.threshold == min(allowed)
    assert cell.tpr == max((scores[same] >= t).mean() for t in allowed)
    assert cell.impostors == (scores[~same] >= cell.threshold).sum()
    assert cell.impostors / (~same).sum() <= fpr


@given(scored_pairs(), st.floats(1e-6, 1.0))
@settings(deadline=None, max_examples=150)
def test_nearest_equals_the_published_scripts_rule(pairs, target):
    scores, same = pairs
    (cell,) = tpr_at_fpr(scores, same, [target], "nearest")
    fpr, tpr, _ = roc_curve(same, scores)
    _, best = min(zip(abs(fpr[::-1] - target), range(len(fpr)), strict=True))
    assert cell.tpr == tpr[::-1][best]
    assert cell.impostors / (~same).sum() == fpr[::-1][best]


def test_exact_share_of_impostors_is_allowed():
    same = np.arange(3100) < 100
    scores = np.concatenate([np.full(100, 0.5), np.linspace(0, 1, 3000)])
    cells = tpr_at_fpr(scores, same, [1e-4, 1e-3, 1e-2, 1e-1])
    assert [cell.impostors for cell in cells] == [0, 3, 30, 300]
    assert [cell.few for cell in cells] == [True, True, False, False]
    assert cells[0].threshold == np.inf
    assert cells[0].tpr == 0


def test_tied_impostors_are_accepted_together_or_not_at_all():
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1])
    same = np.array([True, True, False, False, False, False])
    (cell,) = tpr_at_fpr(scores, same, [0.5])
    assert (cell.tpr, cell.impostors, cell.threshold) == (0.5, 0, 0.9)


def _ten_fold_by_definition(distances, same):
    accuracies, chosen = [], []
    for train, test in KFold(10, shuffle=False).split(distances):
        right = [np.mean((distances[train] < t) == same[train]) for t in np.arange(0, 4, 0.01)]
        chosen.append(np.arange(0, 4, 0.01)[np.argmax(right)])
        accuracies.append(np.mean((distances[test] < chosen[-1]) == same[test]))
    return accuracies, chosen


@given(scored_pairs(10, 97))
@settings(deadline=None, max_examples=40)
def test_ten_fold_equals_the_loop_over_folds_and_thresholds(pairs):
    scores, same = pairs
    distances = 2 - 2 * scores
    ours = ten_fold_accuracy(distances, same)
    accuracies, chosen = _ten_fold_by_definition(distances, same)
    np.testing.assert_allclose(ours.accuracies, accuracies, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(ours.thresholds, chosen)
    assert ours.mean == pytest.approx(np.mean(accuracies), abs=1e-15)
    assert ours.std == pytest.approx(np.std(accuracies), abs=1e-15)


def test_distance_on_the_threshold_is_refused():
    same = np.arange(20) % 2 == 0
    ours = ten_fold_accuracy(np.where(same, 1.0, 2.0), same)
    assert ours.mean == 1
    assert (ours.thresholds == np.arange(0, 4, 0.01)[101]).all()  # 1.00 itself accepts nobody; the first best is 1.01


@pytest.mark.parametrize("function", [tpr_at_fpr, roc, ten_fold_accuracy])
def test_what_cannot_be_scored_is_named(function):
    scores, same = np.linspace(0, 1, 20), np.arange(20) % 2 == 0
    with pytest.raises(InputError, match=r"2 values of 20 that are not finite, the first nan at pair 3"):
        function(np.where(np.isin(np.arange(20), (3, 5)), np.nan, scores), same)
    with pytest.raises(InputError, match="all 20 pairs are same-person pairs"):
        function(scores, np.ones(20, bool))
    with pytest.raises(InputError, match="all 20 pairs are different-person pairs"):
        function(scores, np.zeros(20, bool))
    with pytest.raises(InputError, match=r"\(20,\) and same \(19,\)"):
        function(scores, same[1:])
    with pytest.raises(InputError, match="true or false"):
        function(scores, np.arange(20))


def test_limits_are_named():
    with pytest.raises(InputError, match="4 pairs are too few for 10 folds"):
        ten_fold_accuracy([0, 1, 2, 3], [True, False, True, False])
    with pytest.raises(InputError, match=r"fprs: 0 must lie in \(0, 1\]"):
        tpr_at_fpr([0.1, 0.2], [True, False], [0])


def test_no_warning_at_the_ends():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tpr_at_fpr([1, 0], [True, False], [1e-4])[0].tpr == 1


def test_rates_are_written_as_tables_do():
    assert [fpr_text(x) for x in (1e-4, 1e-3, 0.1, 0.05, 1.0, 1e-10)] == ["1e-4", "1e-3", "1e-1", "0.05", "1", "1e-10"]
