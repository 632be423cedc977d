"""Scores of pairs: both methods against a loop in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetrain.evaluation.ijb import pair_scores as module
from facetrain.evaluation.ijb.pair_scores import pair_scores


def toys(seed, templates=40, pairs=300, dim=9):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(templates, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    first, second = rng.integers(0, templates, (2, pairs)).astype(np.int32)
    return rows.astype(np.float32), first, second


def by_loop(rows, first, second):
    pairs = zip(first, second, strict=True)
    return np.array([sum(float(x) * float(y) for x, y in zip(rows[a], rows[b], strict=True)) for a, b in pairs])


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 40, 1000, 1 << 20]), st.booleans())
@settings(deadline=None, max_examples=40)
def test_both_methods_equal_a_loop(seed, block_bytes, ordered):
    rows, first, second = toys(seed)
    if ordered:
        first = np.sort(first)
    expected = by_loop(rows, first, second)
    for method in ("product", "gather", "auto"):
        found = pair_scores(rows, first, second, method=method, block_bytes=block_bytes)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("method", ["product", "gather"])
def test_small_parts_and_the_order_of_pairs_change_nothing(method, monkeypatch):
    rows, first, second = toys(1, pairs=500)
    whole = pair_scores(rows, first, second, method=method)
    order = np.random.default_rng(2).permutation(500)
    np.testing.assert_allclose(pair_scores(rows, first[order], second[order], method=method), whole[order], atol=1e-6)
    np.testing.assert_allclose(pair_scores(rows, second, first, method=method), whole, atol=1e-6)
    monkeypatch.setattr(module, "_AT_ONCE", 7)
    monkeypatch.setattr(module, "_GATHER", 7)
    monkeypatch.setattr(module, "_SAMPLED", 1)
    np.testing.assert_allclose(pair_scores(rows, first, second, method=method), whole, atol=1e-6)


def test_a_template_without_a_face_scores_lowest_with_anybody():
    rows, first, second = toys(3)
    rows[[2, 5]] = 0
    touched = np.isin(first, (2, 5)) | np.isin(second, (2, 5))
    for method in ("product", "gather"):
        found = pair_scores(rows, first, second, method=method)
        assert (found[touched] == -1).all()
        assert (found[~touched] > -1).all()
    assert touched.any()


def test_few_pairs_are_gathered_and_dense_ones_multiplied(monkeypatch):
    used = []
    for name in ("_by_product", "_by_gather"):
        monkeypatch.setattr(module, name, lambda *args, name=name: used.append(name))
    rows = np.ones((4000, 1), np.float32)
    many = np.arange(4000, dtype=np.int32)
    pair_scores(rows, many, many)
    pair_scores(rows, np.tile(many[:60], 60), np.repeat(many[:60], 60))
    assert used == ["_by_gather", "_by_product"]
    assert pair_scores(rows, many[:0], many[:0]).shape == (0,)


@pytest.mark.parametrize(("missing", "whole"), [([20], True), ([0, 20, 39], True), (list(range(10, 30)), False)])
def test_a_run_of_templates_with_few_gaps_is_multiplied_as_it_is(missing, whole, monkeypatch):
    rows, first, second = toys(4, pairs=3000)
    keep = ~np.isin(second, missing)
    first, second = np.sort(first[keep]), second[keep]
    monkeypatch.setattr(module, "_SAMPLED", 1)
    found = module._occurring(second, 40)
    expected = np.arange(second.min(), second.max() + 1) if whole else np.unique(second)
    np.testing.assert_array_equal(found, expected)
    scores = pair_scores(rows, first, second, method="product")
    np.testing.assert_allclose(scores, by_loop(rows, first, second), atol=2e-6)
