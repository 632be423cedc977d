"""The blocked search against brute force in float64, and what must not matter to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetrain.errors import InputError
from facetrain.evaluation import search, search_blocks
from facetrain.evaluation.search import Largest, count_above, nearest
from facetrain.evaluation.search_blocks import scored_blocks


@st.composite
def whole_numbers(draw):
    """Small whole numbers, whose float32 products are exact, so that ties are true ties, and there are many."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    queries, rows, size = draw(st.integers(1, 40)), draw(st.integers(1, 60)), draw(st.integers(1, 5))
    pick = draw(st.integers(1, 3))
    return tuple(random.integers(-pick, pick + 1, (n, size)).astype(np.float32) for n in (queries, rows))


def _unit(count, size, seed):
    rows = np.random.default_rng(seed).standard_normal((count, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _brute_force(queries, gallery, k):
    """Every score in float64; a stable sort gives the lower row first."""
    scores = queries.astype(np.float64) @ gallery.astype(np.float64).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


@given(whole_numbers(), st.integers(1, 70), st.integers(1, 60), st.integers(1, 45))
@settings(deadline=None, max_examples=150)
def test_nearest_equals_brute_force_with_ties_to_the_lower_row(pair, block, k, chunk):
    queries, gallery = pair
    k = min(k, len(gallery))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_blocks, "QUERIES", chunk)
        scores, rows = nearest(queries, gallery, k, block=block)
    wanted_scores, wanted_rows = _brute_force(queries, gallery, k)
    np.testing.assert_array_equal(rows, wanted_rows)
    np.testing.assert_array_equal(scores, wanted_scores)


@given(whole_numbers(), st.integers(1, 70), st.integers(1, 20), st.booleans(), st.integers(1, 12))
@settings(deadline=None, max_examples=150)
def test_counts_equal_comparing_everything(pair, block, limits, ties, many):
    queries, gallery = pair
    random = np.random.default_rng(limits)
    wanted = random.integers(-6, 7, (len(queries), limits)).astype(np.float32)
    wanted[random.random(wanted.shape) < 0.2] = np.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MANY", many)
        counts = count_above(queries, gallery, wanted, ties=ties, block=block)
    scores = (queries.astype(np.float64) @ gallery.astype(np.float64).T)[:, None, :]
    above = scores >= wanted[:, :, None] if ties else scores > wanted[:, :, None]
    np.testing.assert_array_equal(counts, above.sum(axis=2))
    np.testing.assert_array_equal(count_above(queries, gallery, wanted[:, 0], ties=ties), counts[:, 0])


@given(whole_numbers(), st.integers(1, 70), st.integers(1, 300))
@settings(deadline=None, max_examples=100)
def test_largest_scores_of_all_queries(pair, block, k):
    queries, gallery = pair
    largest = Largest(k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "BLOCK", 3)  # so that it shrinks often
        for at, _, scores in scored_blocks(queries, gallery, block=block):
            largest.take(at, scores)
            values, owners = largest.falling()
    scores = queries.astype(np.float64) @ gallery.astype(np.float64).T
    np.testing.assert_array_equal(values, np.sort(scores.ravel())[::-1][:k])
    for owner in range(len(queries)):  # those above the last are all there, with their queries
        kept = values[(owners == owner) & (values > values[-1])]
        np.testing.assert_array_equal(np.sort(kept), np.sort(scores[owner][scores[owner] > values[-1]]))


@pytest.mark.parametrize("numpy", [False, True])
def test_scores_are_the_same_to_the_bit_however_the_gallery_is_cut_or_ordered(monkeypatch, numpy):
    if numpy and not search_blocks._one_order():
        pytest.skip("NumPy's BLAS sums in another order elsewhere in a matrix, so it is never taken here")
    monkeypatch.setattr(search_blocks, "numpy_multiplies", lambda: numpy)
    queries, gallery = _unit(50, 128, 0), _unit(1000, 128, 1)
    gallery[700] = gallery[3]
    scores, rows = nearest(queries, gallery, 5)
    for block in (1, 7, 16, 100, 999, 5000):
        again = nearest(queries, gallery, 5, block=block)
        np.testing.assert_array_equal(again[0], scores)
        np.testing.assert_array_equal(again[1], rows)
    order = np.random.default_rng(2).permutation(1000)
    shuffled = nearest(queries, gallery[order], 5, block=64)
    np.testing.assert_array_equal(shuffled[0], scores)
    np.testing.assert_array_equal(np.sort(shuffled[0]), np.sort(scores))
    one_by_one = [nearest(queries[i : i + 1], gallery, 5) for i in range(50)]
    np.testing.assert_array_equal(np.concatenate([one[0] for one in one_by_one]), scores)
    np.testing.assert_array_equal(np.concatenate([one[1] for one in one_by_one]), rows)
    brute, _ = _brute_force(queries, gallery, 5)
    np.testing.assert_allclose(scores, brute, rtol=0, atol=1e-6)


@pytest.mark.parametrize("numpy", [False, True])
def test_either_library_multiplies(monkeypatch, numpy):
    monkeypatch.setattr(search_blocks, "numpy_multiplies", lambda: numpy)
    queries, gallery = _unit(70, 24, 9), _unit(300, 24, 10)
    wanted, places = _brute_force(queries, gallery, 3)
    for block in (20, 300):
        scores, rows = nearest(queries, gallery, 3, block=block)
        np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(rows, places)
    itself, _ = nearest(gallery, gallery, 1)
    np.testing.assert_allclose(itself, 1, rtol=0, atol=1e-6)


def test_galleries_on_disk_of_half_precision_and_in_blocks(tmp_path):
    queries, gallery = _unit(20, 32, 3), _unit(300, 32, 4).astype(np.float16)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    assert not mapped.flags.writeable
    scores, rows = nearest(queries, mapped, 3, block=64)
    wanted, places = _brute_force(queries, gallery, 3)
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(rows, places)
    cut = (mapped[a : a + 37] for a in range(0, 300, 37))
    np.testing.assert_array_equal(nearest(queries, cut, 3)[1], rows)
    with_nothing = [mapped[:0], mapped[:100], mapped[100:100], mapped[100:]]
    np.testing.assert_array_equal(nearest(queries, with_nothing, 3)[1], rows)


def test_the_route_of_a_gpu_counts_the_same(monkeypatch):
    queries, gallery = _unit(20, 16, 5), _unit(90, 16, 6)
    limits = np.concatenate([nearest(queries, gallery, 4)[0], np.full((20, 1), np.inf)], axis=1)
    wanted = [count_above(queries, gallery, limits, ties=ties) for ties in (False, True)]
    np.testing.assert_array_equal(wanted[0][:, :4], np.tile(np.arange(4), (20, 1)))
    np.testing.assert_array_equal(wanted[1][:, :4], np.tile(np.arange(1, 5), (20, 1)))
    first = nearest(queries, np.concatenate([gallery, gallery]), 1)
    monkeypatch.setattr(search, "_numpy_sees", lambda scores: False)
    for one, again in zip(first, nearest(queries, np.concatenate([gallery, gallery]), 1), strict=True):
        np.testing.assert_array_equal(again, one)
    for ties in (False, True):
        np.testing.assert_array_equal(count_above(queries, gallery, limits, ties=ties, block=32), wanted[ties])
    largest = Largest(50)
    for at, _, scores in scored_blocks(queries, gallery, block=32):
        largest.take(at, scores)
    everything = queries @ gallery.T
    values, owners = largest.falling()
    np.testing.assert_allclose(values, np.sort(everything.ravel())[::-1][:50], rtol=0, atol=1e-6)
    assert all(np.isclose(everything[q], s, atol=1e-6).any() for s, q in zip(values, owners, strict=True))


def test_what_cannot_be_searched_is_one_line():
    queries, gallery = _unit(3, 8, 7), _unit(9, 8, 8)
    with pytest.raises(InputError, match="k = 10 is more than the gallery's 9 rows"):
        nearest(queries, gallery, 10)
    with pytest.raises(InputError, match="k = 0 must be 1 or more"):
        nearest(queries, gallery, 0)
    with pytest.raises(InputError, match="block = 0 must be 1 or more"):
        nearest(queries, gallery, block=0)
    with pytest.raises(InputError, match="queries have 8 numbers each and gallery rows 4"):
        nearest(queries, gallery[:, :4])
    with pytest.raises(InputError, match=r"queries \(8,\) float32 must be a matrix"):
        nearest(queries[0], gallery)
    with pytest.raises(InputError, match=r"gallery \(9, 8\) int64 must be a matrix"):
        nearest(queries, gallery.astype(np.int64))
    for bad in (np.nan, np.inf, -np.inf):
        damaged = gallery.copy()
        damaged[6, 3] = bad
        with pytest.raises(InputError, match="gallery row 6 holds a number that is not finite"):
            nearest(queries, damaged, block=4)
        with pytest.raises(InputError, match="query 6 holds a number that is not finite"):
            nearest(damaged, gallery)
    with pytest.raises(InputError, match="limits hold NaN"):
        count_above(queries, gallery, np.full(3, np.nan))
