"""All pairs in blocks against all pairs in one float64 matrix."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from facetrain.errors import InputError
from facetrain.evaluation.allpairs import BIN, HALF, all_pairs, binned_cells, pair_counts, roc_of_bins
from facetrain.evaluation.scores import tpr_at_fpr, tpr_at_fpr_split


def signs(count, people, seed=0, size=16):
    """Rows of +1 and -1, whose cosines are multiples of 1/8 and exact in any order of summation: ties abound."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, people, count)
    centres = rng.choice([-1.0, 1.0], (people, size))
    flips = np.where(rng.random((count, size)) < 0.3, -1.0, 1.0)
    return (centres[labels] * flips).astype(np.float32), labels


def brute(rows, labels):
    """(scores, whether of one person) of every pair once, float64, and the full matrix with -inf on the diagonal."""
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    matrix = unit @ unit.T
    np.fill_diagonal(matrix, -np.inf)
    first, second = np.triu_indices(len(rows), 1)
    return matrix[first, second], labels[first] == labels[second], matrix


def assert_equal(ours, theirs):
    for name in ("genuine_bins", "impostor_bins", "best_genuine", "best_impostor"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
    for name in ("genuine", "impostor"):
        np.testing.assert_array_equal(np.sort(getattr(ours, name)), np.sort(getattr(theirs, name)), name)


@pytest.mark.parametrize("block", [7, 64, 1024])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_pair_is_scored_once(block, dtype):
    rng = np.random.default_rng(3)
    rows, labels = (rng.normal(size=(90, 24)) * rng.lognormal(size=(90, 1))).astype(dtype), rng.integers(-2, 12, 90)
    found = all_pairs(rows, labels, keep=500, block=block)
    scores, same, matrix = brute(rows, labels)
    np.testing.assert_allclose(np.sort(found.genuine), np.sort(scores[same]), rtol=0, atol=3e-7)
    np.testing.assert_allclose(np.sort(found.impostor), np.sort(scores[~same])[-500:], rtol=0, atol=3e-7)
    mates = labels[:, None] == labels
    np.testing.assert_allclose(found.best_genuine, np.where(mates, matrix, -np.inf).max(1), rtol=0, atol=3e-7)
    np.testing.assert_allclose(found.best_impostor, np.where(mates, -np.inf, matrix).max(1), rtol=0, atol=3e-7)
    assert pair_counts(labels) == (same.sum(), (~same).sum()) == (found.genuine_bins.sum(), found.impostor_bins.sum())
    nearest = matrix.argmax(axis=1)
    mated = mates.sum(axis=1) > 1
    assert found.rank1 == pytest.approx((labels[nearest] == labels)[mated].mean(), abs=1e-12)


@pytest.mark.parametrize("block", [1, 5, 16, 200])
@pytest.mark.parametrize("keep", [0, 40, 1000, 10**6])
def test_who_is_on_each_pair(block, keep):
    rows, labels = signs(90, 11, seed=7)
    labels = 50 - 7 * labels
    plain, found = (all_pairs(rows, labels, keep=keep, block=block, people=people) for people in (False, True))
    assert_equal(found, plain)
    assert len(plain.genuine_people) == len(plain.impostor_people) == 0
    scores, same, _ = brute(rows, labels)
    persons = np.unique(labels, return_inverse=True)[1]
    first, second = np.triu_indices(90, 1)
    both = np.sort(np.stack((persons[first], persons[second]), axis=1), axis=1)
    expected = sorted(zip(scores[same], both[same, 0], strict=True))
    assert sorted(zip(found.genuine.tolist(), found.genuine_people.tolist(), strict=True)) == expected
    falling = sorted(((score, *pair) for score, pair in zip(scores[~same], both[~same].tolist(), strict=True)))[::-1]
    ours = zip(found.impostor.tolist(), *found.impostor_people.T.tolist(), strict=True)
    assert list(ours) == falling[:keep]  # of equal scores those of the people with the highest numbers


@pytest.mark.parametrize("block", [1, 3, 16, 50])
def test_blocks_do_not_matter(block):
    rows, labels = signs(51, 9)
    assert_equal(all_pairs(rows, labels, keep=300, block=block), all_pairs(rows, labels, keep=300))


def test_order_does_not_matter():
    rows, labels = signs(200, 25, seed=4)
    order = np.random.default_rng(0).permutation(200)
    whole, mixed = (
        all_pairs(rows, labels, keep=999, block=32),
        all_pairs(rows[order], labels[order], keep=999, block=32),
    )
    for best in ("best_genuine", "best_impostor"):
        np.testing.assert_array_equal(getattr(mixed, best), getattr(whole, best)[order])
        getattr(mixed, best)[order] = getattr(mixed, best).copy()
    assert_equal(mixed, whole)
    assert mixed.rank1 == whole.rank1


def test_some_of_the_images_are_as_a_set_of_their_own():
    rows, labels = signs(120, 9, seed=5)
    which = np.flatnonzero(labels % 2)
    spoilt = rows.copy()
    spoilt[labels % 2 == 0] = np.nan  # nobody looks at the others
    assert_equal(
        all_pairs(spoilt, labels, which=which, keep=99, block=16), all_pairs(rows[which], labels[which], keep=99)
    )


def test_bins_count_what_they_say():
    rows, labels = signs(100, 10, seed=6)
    rows[0] = 0
    found = all_pairs(rows, labels)
    unit = rows.astype(np.float64) / 4
    first, second = np.triu_indices(100, 1)
    scores, same = (unit @ unit.T)[first, second], labels[first] == labels[second]
    for bins, kind in ((found.genuine_bins, same), (found.impostor_bins, ~same)):
        values, counts = np.unique(scores[kind], return_counts=True)
        assert len(bins) == 2 * HALF + 1
        np.testing.assert_array_equal(np.flatnonzero(bins), (values + 1) * HALF)
        np.testing.assert_array_equal(bins[bins > 0], counts)
    assert len(found.genuine) == len(found.impostor) == 0
    fpr, tpr, thresholds = roc_curve(same, scores, drop_intermediate=False)
    ours = roc_of_bins(found)
    np.testing.assert_array_equal(ours.fpr, fpr)
    np.testing.assert_array_equal(ours.tpr, tpr)
    np.testing.assert_array_equal(ours.thresholds, thresholds)


def test_scores_beyond_one_by_rounding_are_counted():
    row = np.array([0.1, 0.7, 0.3], np.float32)
    rows = np.stack([row, row, -row, row * 3, -row * 7])
    found = all_pairs(rows, [0, 0, 1, 1, 2])
    assert found.genuine_bins.sum() == 2
    assert found.impostor_bins.sum() == 8
    assert found.genuine_bins[-3:].sum() == 1
    assert found.impostor_bins[:2].sum() == 5


@pytest.mark.parametrize("rule", ["strict", "nearest"])
@pytest.mark.parametrize("seed", range(3))
def test_the_table_is_that_of_all_pairs(seed, rule):
    rows, labels = signs(200, 14, seed=seed, size=64)
    fprs = [1e-1, 1e-2, 1e-3, 1e-4]
    scores, same, _ = brute(rows, labels)
    keep = (2 if rule == "nearest" else 1) * 2000 + 3
    found = all_pairs(rows, labels, keep=keep, block=32)
    cells = tpr_at_fpr_split(found.genuine, found.impostor, fprs, rule, pair_counts(labels)[1])
    assert cells == tpr_at_fpr(scores.astype(np.float32), same, fprs, rule)


@pytest.mark.parametrize("seed", range(3))
def test_the_histogram_method_keeps_its_promises(seed):
    rng = np.random.default_rng(seed)
    rows, labels = rng.normal(size=(400, 8)).astype(np.float32), rng.integers(0, 40, 400)
    rows += 2 * rng.normal(size=(40, 8))[labels]
    rows[5:25] = rows[5]  # one score for many pairs
    fprs = [1e-1, 1e-2, 1e-3, 1e-4]
    found = all_pairs(rows, labels, keep=20000)
    exact = tpr_at_fpr_split(found.genuine, found.impostor, fprs, "strict", pair_counts(labels)[1])
    for (cell, bound), true in zip(binned_cells(found, fprs, "strict"), exact, strict=True):
        assert 0 <= true.tpr - cell.tpr <= bound < 0.05
        assert true.threshold <= cell.threshold + BIN
        assert (found.impostor >= cell.threshold).sum() == cell.impostors <= true.impostors
        assert cell.impostors <= cell.fpr * pair_counts(labels)[1]
    accepted = np.append(0, np.cumsum(found.impostor_bins[::-1]))  # at every edge, from the highest
    for cell, _ in binned_cells(found, fprs, "nearest"):
        assert abs(cell.impostors / accepted[-1] - cell.fpr) == np.abs(accepted / accepted[-1] - cell.fpr).min()


@given(st.integers(0, 10**9), st.integers(1, 400), st.integers(5, 14), st.integers(0, 900))
@settings(deadline=None, max_examples=40)
def test_the_largest_survive_any_number_of_blocks(seed, people, block, keep):
    rows, labels = signs(40, people, seed=seed)
    scores, same, _ = brute(rows, labels)
    found = all_pairs(rows, labels, keep=keep, block=block)
    np.testing.assert_array_equal(np.sort(found.impostor), np.sort(scores[~same])[max(0, (~same).sum() - keep) :])


def test_who_has_nobody_has_nobody():
    rows, _ = signs(6, 2)
    alone = all_pairs(rows, np.arange(6), keep=3)
    assert (alone.best_genuine == -np.inf).all()
    assert len(alone.genuine) == 0
    assert len(alone.impostor) == 3
    assert np.isnan(alone.rank1)
    together = all_pairs(rows, np.zeros(6, int), keep=3)
    assert (together.best_impostor == -np.inf).all()
    assert len(together.genuine) == 15
    assert len(together.impostor) == 0
    assert together.rank1 == 1


def test_an_equal_stranger_is_no_hit():
    rows = np.array([[1, 0], [1, 0], [2, 0], [0, 1], [0, 3]], np.float32)
    assert all_pairs(rows, [0, 0, 1, 2, 2]).rank1 == 0.5  # images 0 and 1 score 1 with each other and with image 2


def test_progress_counts_every_pair():
    rows, labels = signs(100, 5)
    told = []
    all_pairs(rows, labels, block=16, progress=told.append)
    assert sum(told) == 100 * 99 // 2


def test_what_cannot_be_compared_is_named():
    rows, labels = signs(30, 3)
    for bad in (np.nan, np.inf):
        spoilt = rows.copy()
        spoilt[[7, 4], 2] = bad
        with pytest.raises(InputError, match=r"embeddings: 2 of 30 are not finite, the first that of row 4;"):
            all_pairs(spoilt, labels)
        with pytest.raises(InputError, match=r"the first that of photos/4\.jpg"):
            all_pairs(spoilt, labels, where="photos/{}.jpg".format)
    with pytest.raises(InputError, match=r"labels \(29,\) int64 must be one integer for each of 30 embeddings"):
        all_pairs(rows, labels[1:])
    with pytest.raises(InputError, match=r"labels .* float64 must be one integer"):
        all_pairs(rows, labels.astype(float))
    with pytest.raises(InputError, match=r"embeddings \(30,\) float32 must be \(N, D\) real numbers"):
        all_pairs(rows[:, 0], labels)
    many = np.zeros((65_537, 1), np.float32)
    with pytest.raises(InputError, match="labels: 65,537 people; who is on each pair can be kept of 65,536 at most"):
        all_pairs(many, np.arange(65_537), keep=1, people=True)
    with pytest.raises(InputError, match="int64 must be"):
        all_pairs(rows.astype(int), labels)


@pytest.mark.parametrize("people", [False, True])
def test_memory_stays_below_the_features(people):
    """6,000 images: their matrix would be 144 MB, the features are 12.3 MB."""
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(6000, 512)).astype(np.float32), np.arange(6000) // 10
    keep, block = 20_000, 128
    fixed = 4 * (1.25 * keep * (4 if people else 1) + 30 * block * block) + 8 * 8 * (2 * HALF + 1)
    tracemalloc.start()
    all_pairs(rows, labels, keep=keep, block=block, people=people)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * rows.nbytes + fixed
    assert fixed < 20e6
