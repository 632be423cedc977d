"""Intervals of the open-set numbers against a bootstrap that writes every drawn pair out."""

from __future__ import annotations

import numpy as np
import pytest

from facetrain.evaluation.allpairs import all_pairs, pair_counts
from facetrain.evaluation.bootstrap import REPLICATES, complete_total, tpr_intervals
from facetrain.evaluation.openset_intervals import cheap, openset_intervals, reach
from facetrain.evaluation.scores import tpr_at_fpr
from facetrain.keyed import text_key, uniform

FPRS = (1e-1, 1e-2)


def signs(count, persons, seed, size=16):
    """Rows of +1 and -1: cosines are multiples of 1/8, so that ties abound and no order of summation matters."""
    rng = np.random.default_rng(seed)
    labels = np.append(np.arange(persons), rng.integers(0, persons, count - persons))
    centres = rng.choice([-1.0, 1.0], (persons, size))
    return (centres[labels] * np.where(rng.random((count, size)) < 0.25, -1.0, 1.0)).astype(np.float32), labels


def clouds(persons=120, images=8, seed=0, size=24):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(persons), images)
    centres = rng.normal(size=(persons, size)) + rng.normal(size=size)
    wide = rng.uniform(0.5, 1.5, (persons, 1))
    return (centres[labels] + wide[labels] * rng.normal(size=(len(labels), size))).astype(np.float32), labels


def written_out(rows, labels):
    """TPRs and rank-1 of every replicate: its people's pairs, one by one; two draws of one person make no pair."""
    persons = labels.max() + 1
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    matrix = unit @ unit.T
    of = [np.flatnonzero(labels == person) for person in range(persons)]
    same = [matrix[np.ix_(own, own)][np.triu_indices(len(own), 1)] for own in of]
    np.fill_diagonal(matrix, -np.inf)
    mates = labels[:, None] == labels
    hit = np.where(mates, matrix, -np.inf).max(axis=1) > np.where(mates, -np.inf, matrix).max(axis=1)
    mated = mates.sum(axis=1) > 1
    rates, ranks = [], []
    for replicate in range(REPLICATES):
        key = text_key("bootstrap over subjects")
        people = [int(persons * float(uniform(0, key, replicate, s))) for s in range(persons)]
        genuine = np.concatenate([same[person] for person in people])
        impostor = np.concatenate(
            [
                matrix[np.ix_(of[one], of[other])].ravel()
                for place, one in enumerate(people)
                for other in people[place + 1 :]
                if other != one
            ]
        )
        scores = np.concatenate((genuine, impostor)).astype(np.float32)
        rates.append([cell.tpr for cell in tpr_at_fpr(scores, np.arange(len(scores)) < len(genuine), FPRS)])
        ranks.append(np.concatenate([hit[of[person]][mated[of[person]]] for person in people]).mean())
    return np.quantile(np.column_stack((rates, ranks)), [0.025, 0.975], axis=0).T


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_are_those_of_every_pair_written_out(seed):
    rows, labels = signs(60, 14, seed)
    expected = written_out(rows, labels)
    for block in (7, 64):
        pairs = all_pairs(rows, labels, keep=10**6, people=True, block=block)
        found = openset_intervals(pairs, labels, FPRS, "strict")
        assert list(found) == ["TPR@1e-1", "TPR@1e-2", "rank-1"]
        np.testing.assert_allclose(list(found.values()), expected, rtol=0, atol=1e-12)
    assert (np.diff(expected) > 0.02).all()


@pytest.mark.parametrize("rule", ["strict", "nearest"])
@pytest.mark.parametrize("listed", [200, 10**6])
def test_neither_blocks_nor_the_order_of_images_matter(rule, listed):
    rows, labels = signs(200, 25, 2)
    kept = reach(pair_counts(labels)[1], 25, 1e-1)
    order = np.random.default_rng(0).permutation(200)
    found = [
        openset_intervals(all_pairs(r, p, keep=kept, people=True, block=block), p, FPRS, rule, listed)
        for r, p, block in ((rows, labels, 9), (rows[order], labels[order], 64), (rows, labels, 1024))
    ]
    assert all(one == found[0] for one in found)
    assert len(found[0]) == 3


def test_what_is_kept_is_enough_and_what_is_left_out_moves_little():
    """120 people with 8 images: 456,960 impostor pairs, of which all, or every 36th at the rate 1e-1, are listed."""
    rows, labels = clouds()
    fprs = (1e-1, 1e-2, 1e-3, 1e-4)
    impostor = pair_counts(labels)[1]
    everything = all_pairs(rows, labels, keep=impostor, people=True)
    kept = all_pairs(rows, labels, keep=reach(impostor, 120, 1e-1), people=True)
    exact, other = (
        tpr_intervals(
            everything.genuine,
            everything.genuine_people,
            everything.impostor[:100_000],
            everything.impostor_people[:100_000],
            fprs,
            subjects=120,
            total=complete_total(np.full(120, 8)),
            seed=seed,
        )
        for seed in (0, 1)
    )
    same = openset_intervals(kept, labels, fprs, "strict", 10**6)
    assert same == exact | {"rank-1": same["rank-1"]}
    thinned = openset_intervals(kept, labels, fprs, "strict", 3000)
    assert 100_000 > reach(impostor, 120, 1e-1) > 25 * 3000
    for name, (low, high) in exact.items():
        scatter = max(0.05 * (high - low), *(abs(a - b) for a, b in zip((low, high), other[name], strict=True)))
        assert thinned[name] == pytest.approx((low, high), abs=scatter), name
    assert thinned["TPR@1e-1"] != exact["TPR@1e-1"]


def test_how_many_are_kept():
    assert reach(50_000_000, 1000, 1e-6) == 1100
    assert reach(50_000_000, 1000, 1e-2) == 1_001_000
    assert 6_200_000 < reach(50_000_000, 1000, 1e-1) < 6_300_000
    assert reach(1_000_000, 20, 1e-1) == 201_000
    assert reach(1500, 20, 1e-1) == 1300
    assert reach(800, 20, 1e-3) == 800


def test_what_is_cheap():
    assert cheap(45_000, 1000)
    assert not cheap(300_000, 1000)
    assert not cheap(1000, 50_000)
