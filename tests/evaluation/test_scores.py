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
from facetrain.evaluation import roc_points
from facetrain.evaluation.scores import (
    deciding_impostors,
    fpr_text,
    roc,
    ten_fold_accuracy,
    tpr_at_fpr,
    tpr_at_fpr_split,
)


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


@st.composite
def split_scores(draw, most=60):
    """(genuine, impostor, fprs): numbers from a seed, which costs less than drawing each; ties from few levels."""
    rng = np.random.default_rng(draw(st.integers(0, 10**12)))
    levels = draw(st.sampled_from([1, 3, 10, 50, 10**6]))
    genuine, impostor = (
        (rng.integers(-levels, levels + 1, rng.integers(1, most)) / levels).astype(
            np.float32 if levels == 10 else np.float64
        )
        for _ in "gi"
    )
    exact = rng.integers(1, len(impostor) + 1) / len(impostor)  # a rate that some number of impostors has
    return genuine, impostor, [exact, *rng.uniform(1e-6, 1, 2)]


def _check_split(split, rule):
    genuine, impostor, fprs = split
    scores, same = np.concatenate((genuine, impostor)), np.arange(len(genuine) + len(impostor)) < len(genuine)
    expected = tpr_at_fpr(scores, same, fprs, rule)
    assert tpr_at_fpr_split(genuine, impostor, fprs, rule) == expected
    needed = deciding_impostors(len(impostor), fprs, rule)
    top = np.sort(impostor)[len(impostor) - needed :]
    assert tpr_at_fpr_split(genuine, top, fprs, rule, len(impostor)) == expected


@given(split_scores(), st.sampled_from(["strict", "nearest"]))
@settings(deadline=None, max_examples=500)
def test_split_gives_the_same_cells(split, rule):
    _check_split(split, rule)


@given(split_scores(300), st.integers(1, 9), st.sampled_from([2, 16]))
@settings(deadline=None, max_examples=1000)
def test_windows_that_are_too_small_grow(split, reach, wider):
    """Around each rate only so many impostor scores are looked at first; a corner outside may be the nearest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roc_points, "_REACH", reach)
        patch.setattr(roc_points, "_WIDER", wider)
        patch.setattr(roc_points, "_PART", 7)
        _check_split(split, "nearest")


@pytest.mark.slow
@given(split_scores(), st.sampled_from(["strict", "nearest"]))
@settings(deadline=None, max_examples=10_000)
def test_split_gives_the_same_cells_ten_thousand_times(split, rule):
    _check_split(split, rule)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize("rule", ["strict", "nearest"])
def test_split_equals_scikit_learn_on_many_scores(rule, dtype):
    rng = np.random.default_rng(0)
    impostor = (rng.normal(0, 1, 200_000) * (1000 if dtype == np.int16 else 0.1)).astype(dtype)
    genuine = (rng.normal(3, 1, 2000) * (1000 if dtype == np.int16 else 0.1)).astype(dtype)
    fprs = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
    cells = tpr_at_fpr_split(genuine, impostor, fprs, rule)
    same = np.arange(202_000) < 2000
    fpr, tpr, thresholds = roc_curve(same, np.concatenate((genuine, impostor)), drop_intermediate=rule == "nearest")
    for cell, asked in zip(cells, fprs, strict=True):
        if rule == "strict":
            at = np.flatnonzero(fpr <= asked)[-1]
        else:
            at = max(range(len(fpr)), key=lambda i: (-abs(fpr[i] - asked), fpr[i], tpr[i]))
        assert (cell.tpr, cell.impostors / 200_000) == (tpr[at], fpr[at])
        assert cell.threshold == thresholds[at]
    assert (np.diff([cell.impostors for cell in cells]) <= 0).all()


def test_split_leaves_its_inputs_alone_and_keeps_their_order_of_rates():
    genuine, impostor = np.array([0.9, 0.1, 0.5]), np.array([0.3, 0.8, -0.2, 0.4])
    before = genuine.copy(), impostor.copy()
    cells = tpr_at_fpr_split(genuine, impostor, [0.25, 1, 0.5, 0.25])
    assert [cell.fpr for cell in cells] == [0.25, 1, 0.5, 0.25]
    assert [cell.impostors for cell in cells] == [1, 4, 2, 1]
    assert [cell.threshold for cell in cells] == [0.5, -0.2, 0.4, 0.5]
    np.testing.assert_array_equal(genuine, before[0])
    np.testing.assert_array_equal(impostor, before[1])


def test_a_corner_far_from_its_rate_is_found_among_many_scores():
    impostor = np.arange(100_000.0)
    genuine = np.array([99_990.5, 40_000.5, 39_999.5])  # no corner between 10 and 59,999 impostors
    cells = tpr_at_fpr_split(genuine, impostor, [0.29, 0.31, 0.6, 1e-4], "nearest")
    assert cells == tpr_at_fpr(np.append(genuine, impostor), np.arange(100_003) < 3, [0.29, 0.31, 0.6, 1e-4], "nearest")
    assert cells[0].impostors < 20
    assert cells[1].impostors > 59_000


@pytest.mark.parametrize("rule", ["strict", "nearest"])
def test_what_split_cannot_score_is_named(rule):
    good = np.linspace(0, 1, 20)
    bad = np.where(np.isin(np.arange(20), (3, 5)), np.nan, good)
    with pytest.raises(InputError, match="genuine hold 2 values of 20 that are not finite, the first nan at pair 3"):
        tpr_at_fpr_split(bad, good, rule=rule)
    with pytest.raises(InputError, match="impostor hold 2 values"):
        tpr_at_fpr_split(good, bad, rule=rule)
    for name, scores in (("genuine", ([], good)), ("impostor", (good, []))):
        with pytest.raises(InputError, match=rf"{name} \(0,\) must be a list of at least one score"):
            tpr_at_fpr_split(*scores, rule=rule)
    with pytest.raises(InputError, match=r"genuine \(1, 20\) must be a list"):
        tpr_at_fpr_split(good[None], good, rule=rule)
    with pytest.raises(InputError, match="genuine must be real numbers, not <U1"):
        tpr_at_fpr_split(["x"], good, rule=rule)
    with pytest.raises(InputError, match=r"fprs: 2 must lie in \(0, 1\]"):
        tpr_at_fpr_split(good, good, [0.1, 2], rule)
    with pytest.raises(InputError, match=r"impostor: 20 scores of 1000; the rates need the (103|203) largest"):
        tpr_at_fpr_split(good, good, [0.1, 0.05], rule, 1000)
    with pytest.raises(InputError, match="impostor: 20 scores of 19;"):
        tpr_at_fpr_split(good, good, [0.1], rule, 19)


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
