"""1:N metrics against definitions written out, probe by probe."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetrain.errors import InputError
from facetrain.evaluation.identification import cmc, search, tpir_at_fpir, without_face


def slow_search(probes, subjects, gallery, enrolled):
    found = []
    for probe, subject in zip(probes, subjects, strict=True):
        similar = [float(np.float32(probe @ one)) for one in gallery]
        own = [s for s, who in zip(similar, enrolled, strict=True) if who == subject]
        others = [s for s, who in zip(similar, enrolled, strict=True) if who != subject]
        if own:
            found.append((True, max(own), 1 + sum(s >= max(own) for s in others)))
        else:
            found.append((False, max(others), 0))
    return found


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 13, 1 << 20]))
@settings(deadline=None, max_examples=50)
def test_search_equals_a_loop(seed, cells):
    """Coordinates are small whole numbers: scores are exact and often equal; subjects are enrolled repeatedly."""
    rng = np.random.default_rng(seed)
    probes, gallery = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (17, 11))
    probes[:, 0] = gallery[:, 0] = 1  # none is zero
    subjects, enrolled = rng.integers(0, 9, 17), rng.integers(0, 7, 11)
    found = search(probes, subjects, gallery, enrolled, cells=cells)
    expected = slow_search(probes, subjects, gallery, enrolled)
    assert list(zip(found.mated.tolist(), found.score.tolist(), found.rank.tolist(), strict=True)) == expected
    np.testing.assert_array_equal(found.ranks, [rank for mated, _, rank in expected if mated])
    order, places = rng.permutation(17), rng.permutation(11)
    again = search(probes[order], subjects[order], gallery[places], enrolled[places])
    np.testing.assert_array_equal(again.rank, found.rank[order])
    np.testing.assert_array_equal(again.score, found.score[order])


def test_a_template_without_a_face_is_found_by_nobody():
    gallery = np.array([[1, 0], [0, 0], [-1, 0]], np.float32)
    probes = np.array([[1, 0], [1, 0], [0, 0], [0, 0]], np.float32)
    found = search(probes, np.array([1, 2, 1, 9]), gallery, np.array([1, 2, 3]))
    assert found.rank.tolist() == [1, 3, 3, 0]
    assert found.score.tolist() == [1, -1, -1, -1]
    assert without_face(gallery).tolist() == [False, True, False]


def test_search_refuses_what_does_not_fit():
    rows = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="2 probes with 1 subjects and 2 templates with 2"):
        search(rows, np.array([1]), rows, np.array([1, 2]))
    with pytest.raises(InputError, match="a search needs probes and a gallery"):
        search(rows[:0], np.array([], int), rows, np.array([1, 2]))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 12))
def test_cmc_counts_ranks(ranks, largest):
    expected = [sum(rank <= r for rank in ranks) / len(ranks) for r in range(1, largest + 1)]
    np.testing.assert_allclose(cmc(ranks, largest), expected)


def test_cmc_needs_ranks():
    for wrong in ([], [0, 1], [[1]]):
        with pytest.raises(InputError, match="ranks of mated probes"):
            cmc(wrong)


@st.composite
def searched(draw):
    levels = draw(st.integers(1, 25))
    score = st.integers(-levels, levels).map(lambda s: s / levels)
    mated = draw(st.lists(score, min_size=1, max_size=30))
    ranks = draw(st.lists(st.integers(1, 3), min_size=len(mated), max_size=len(mated)))
    return np.array(mated), np.array(ranks), np.array(draw(st.lists(score, min_size=1, max_size=40)))


@given(searched(), st.floats(1e-4, 1))
@settings(deadline=None, max_examples=80)
def test_strict_tpir_is_the_best_that_keeps_the_promise(found, fpir):
    mated, ranks, others = found
    (cell,) = tpir_at_fpir(mated, ranks, others, [fpir])
    thresholds = [np.inf, *mated, *others]
    allowed = [t for t in thresholds if (others >= t).mean() <= fpir]
    assert cell.tpr == max(((mated >= t) & (ranks == 1)).mean() for t in allowed)
    assert ((mated >= cell.threshold) & (ranks == 1)).mean() == cell.tpr
    assert (others >= cell.threshold).sum() == cell.impostors
    assert (others >= cell.threshold).mean() <= fpir


@given(searched(), st.floats(1e-4, 1))
@settings(deadline=None, max_examples=80)
def test_exclusive_tpir_is_what_the_script_computes(found, fpir):
    """As evaluation_1N of ijb_evals.py has it: rank 1 and above the script's choice among falling non-mated scores."""
    mated, ranks, others = found
    (cell,) = tpir_at_fpir(mated, ranks, others, [fpir], rule="exclusive")
    threshold = sorted(others, reverse=True)[max(int(len(others) * fpir) - 1, 0)]
    assert cell.tpr == np.logical_and(ranks == 1, mated > threshold).sum() / len(mated)
    assert cell.impostors == (others > threshold).sum()
    assert cell.tpr <= tpir_at_fpir(mated, ranks, others, [fpir])[0].tpr or fpir < 1 / len(others)


def test_tpir_refuses_what_cannot_be_counted():
    with pytest.raises(InputError, match=r"fpirs: 0 must lie in \(0, 1\]"):
        tpir_at_fpir([0.5], [1], [0.1], [0])
    with pytest.raises(InputError, match="TPIR needs scores and ranks"):
        tpir_at_fpir([0.5], [1], [])
    with pytest.raises(InputError, match="non_mated: scores that are not finite"):
        tpir_at_fpir([0.5], [1], [np.nan])
