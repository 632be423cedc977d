"""The bootstrap over subjects against one that writes every drawn person and pair out, and its coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from facetrain.errors import InputError
from facetrain.evaluation.bootstrap import complete_total, listed_total, rate_interval, tpr_intervals
from facetrain.evaluation.scores import roc, tpr_at_fpr
from facetrain.keyed import text_key, uniform

SUBJECTS, IMAGES = 12, 3


def drawn(seed, replicate, subjects=SUBJECTS):
    key = text_key("bootstrap over subjects")
    return [int(subjects * float(uniform(seed, key, replicate, s))) for s in range(subjects)]


def all_pairs(seed, subjects=SUBJECTS, images=IMAGES, levels=40):
    """Scores of all pairs of images, on a grid so that many are equal: genuine (P,) + owner, impostor (N,) + both."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(subjects), images)
    skill = rng.normal(1, 0.8, subjects)
    first, second = np.triu_indices(len(owner), 1)
    a, b = owner[first], owner[second]
    scores = np.round(rng.normal(np.where(a == b, skill[a], -1 + 0.3 * (skill[a] + skill[b])), 0.5) * levels) / levels
    same = a == b
    return scores[same], a[same], scores[~same], np.stack((a, b), axis=1)[~same]


def nearest_point(scores, same, fpr):
    """By the rule, over all points of the ROC."""
    points = roc(scores, same, drop_collinear=False)
    away = np.abs(points.fpr - fpr)
    return points.tpr[np.flatnonzero(away == away.min())[-1]]


@pytest.mark.parametrize("rule", ["strict", "nearest"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_intervals_equal_those_of_every_pair_written_out(seed, rule):
    genuine, owner, impostor, both = all_pairs(seed)
    fprs = (0.002, 0.01, 0.1, 1.0)
    ours = tpr_intervals(genuine, owner, impostor, both, fprs, subjects=SUBJECTS, rule=rule, replicates=70, seed=seed)
    rates = []
    for replicate in range(70):
        people = drawn(seed, replicate)
        same, other = [], []
        for place, person in enumerate(people):
            same += genuine[owner == person].tolist()
            for rest in people[place + 1 :]:
                if rest != person:  # two draws of one person make no pair
                    pair = (both == sorted((person, rest))).all(axis=1)
                    other += impostor[pair].tolist()
        scores, labels = np.array(same + other), np.arange(len(same) + len(other)) < len(same)
        if rule == "strict":
            rates.append([cell.tpr for cell in tpr_at_fpr(scores, labels, fprs)])
        else:
            rates.append([nearest_point(scores, labels, fpr) for fpr in fprs])
    low, high = np.quantile(rates, [0.025, 0.975], axis=0)
    assert list(ours) == ["TPR@0.002", "TPR@1e-2", "TPR@1e-1", "TPR@1"]
    np.testing.assert_allclose(list(ours.values()), np.stack((low, high), axis=1), rtol=0, atol=1e-12)
    assert (high - low)[1] > 0.05


@pytest.mark.parametrize("total", ["complete", "listed", "long list"])
def test_the_largest_impostors_are_enough(total, monkeypatch):
    genuine, owner, impostor, both = all_pairs(3)
    if total == "long list":
        monkeypatch.setattr("facetrain.evaluation.bootstrap._MOST_DENSE", 0)
        monkeypatch.setattr("facetrain.evaluation.bootstrap._AT_ONCE", 7)
    everything = complete_total(np.full(SUBJECTS, IMAGES)) if total == "complete" else listed_total(both, SUBJECTS)
    np.testing.assert_array_equal(everything(np.ones((2, SUBJECTS))), len(impostor))
    top = np.argsort(-impostor)[:150]
    names = {"subjects": SUBJECTS, "replicates": 100}
    whole = tpr_intervals(genuine, owner, impostor, both, (0.01, 0.05, 0.5), **names)
    part = tpr_intervals(genuine, owner, impostor[top], both[top], (0.01, 0.05, 0.5), total=everything, **names)
    assert part == {name: whole[name] for name in ("TPR@1e-2", "TPR@0.05")}  # 150 of 594 are too few for half of them


def test_order_does_not_matter_and_the_seed_decides():
    genuine, owner, impostor, both = all_pairs(4)
    rng = np.random.default_rng(0)
    one, other = rng.permutation(len(genuine)), rng.permutation(len(impostor))
    names = {"subjects": SUBJECTS, "replicates": 50}
    first = tpr_intervals(genuine, owner, impostor, both, **names)
    assert tpr_intervals(genuine[one], owner[one], impostor[other], both[other, ::-1], **names) == first
    assert tpr_intervals(genuine, owner, impostor, both, **names, seed=1) != first


def test_pairs_of_unknown_people_are_drawn_one_by_one():
    """With a unit for each pair: as if every pair were a subject of its own."""
    rng = np.random.default_rng(5)
    same = np.arange(60) < 25
    scores = rng.normal(same, 0.7)
    ours = tpr_intervals(
        scores[same], np.flatnonzero(same), scores[~same], np.flatnonzero(~same), (0.1,), subjects=60, replicates=80
    )
    picks = [np.array(drawn(0, replicate, 60)) for replicate in range(80)]
    rates = [tpr_at_fpr(scores[pick], same[pick], (0.1,))[0].tpr for pick in picks]
    assert ours["TPR@1e-1"] == pytest.approx(tuple(np.quantile(rates, [0.025, 0.975])), abs=1e-12)


def test_interval_of_a_rate_draws_the_probes_of_a_subject_together():
    rng = np.random.default_rng(6)
    owner = rng.integers(0, 20, 150)
    hits = rng.random(150) < 0.2 + 0.6 * (owner % 2)
    ours = rate_interval(hits, owner, subjects=25, replicates=90, seed=3)  # the last five have no probe
    rates = [
        np.mean(list(itertools.chain.from_iterable(hits[owner == s] for s in drawn(3, replicate, 25))))
        for replicate in range(90)
    ]
    assert ours == pytest.approx(tuple(np.quantile(rates, [0.025, 0.975])), abs=1e-12)
    assert rate_interval([1, 1], [0, 1], subjects=2) == (1.0, 1.0)


def _studied(seed, subjects=60, per_subject=8):
    """A study whose people differ: genuine scores of one person go up and down together; and impostors likewise."""
    rng = np.random.default_rng(seed)
    skill = rng.normal(0, 1, subjects)
    owner = np.repeat(np.arange(subjects), per_subject)
    genuine = rng.normal(2 + 1.5 * skill[owner], 0.4)
    first, second = np.triu_indices(subjects, 1)
    impostor = rng.normal(0.3 * (skill[first] + skill[second]), 0.9)
    return genuine, owner, impostor, np.stack((first, second), axis=1)


def test_intervals_of_95_per_cent_hold_the_truth_about_as_often():
    """Drawing pairs one by one, as is often done, does not. Where few impostors decide, the interval is too wide."""
    genuine, _, impostor, _ = _studied(10**6, 3000, 10)
    truths = [(genuine >= np.quantile(impostor, 1 - fpr)).mean() for fpr in (0.1, 0.01)]
    held, widths, pairs, rates = np.zeros(2), np.zeros(2), 0, []
    studies = 120
    for seed in range(studies):
        same, owner, other, both = _studied(seed)
        found = tpr_intervals(same, owner, other, both, (0.1, 0.01), subjects=60, replicates=150, seed=seed)
        held += [low <= truth <= high for (low, high), truth in zip(found.values(), truths, strict=True)]
        widths += [high - low for low, high in found.values()]
        rates.append([(same >= np.quantile(other, 1 - fpr)).mean() for fpr in (0.1, 0.01)])
        units = np.arange(len(same) + len(other))
        one, rest = units[: len(same)], units[len(same) :]
        single = tpr_intervals(same, one, other, rest, (0.1,), subjects=len(units), replicates=60, seed=seed)
        low, high = single["TPR@1e-1"]
        pairs += low <= truths[0] <= high
    assert 0.9 <= held[0] / studies <= 0.98
    assert held[1] / studies >= 0.95
    assert pairs / studies < 0.75
    spread = widths / studies / (2 * 1.96) / np.std(rates, axis=0)
    assert 0.9 < spread[0] < 1.1 < spread[1] < 1.35


def test_what_cannot_be_drawn_from_is_named():
    good = {"subjects": 3, "replicates": 5}
    with pytest.raises(InputError, match=r"genuine: \(2,\) scores and \(1,\) subjects do not fit"):
        tpr_intervals([1, 2], [0], [0], [[0, 1]], **good)
    with pytest.raises(InputError, match=r"impostors: \(1,\) scores and \(1, 3\) subjects do not fit"):
        tpr_intervals([1], [0], [0], [[0, 1, 2]], **good)
    with pytest.raises(InputError, match=r"genuine: \(0,\) scores"):
        tpr_intervals([], [], [0], [[0, 1]], **good)
    with pytest.raises(InputError, match="impostors: 1 of 2 scores are not finite"):
        tpr_intervals([1], [0], [0, np.nan], [[0, 1], [1, 2]], **good)
    with pytest.raises(InputError, match="impostors: subjects must be whole numbers from 0 to 2"):
        tpr_intervals([1], [0], [0], [[0, 3]], **good)
    with pytest.raises(InputError, match=r"fprs: 0, 0\.1 must lie in"):
        tpr_intervals([1], [0], [0], [[0, 1]], (0, 0.1), **good)
    with pytest.raises(InputError, match="no replicate of the bootstrap held both kinds of pairs"):
        tpr_intervals([1], [0], [0], [[0, 0]], (0.1,), subjects=1, total=lambda weights: 0 * weights[:, 0])
    with pytest.raises(InputError, match="hits: subjects must be whole numbers from 0 to 0"):
        rate_interval([1], [1], subjects=1)
