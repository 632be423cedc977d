"""A group's numbers against brute force; who is enrolled; what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from facetrain.errors import InputError
from facetrain.evaluation import openset_intervals, openset_scores
from facetrain.evaluation.allpairs import BIN
from facetrain.evaluation.class_groups import Group
from facetrain.evaluation.largest import MOST_PEOPLE
from facetrain.evaluation.openset_scores import Protocol, check_group, draw_gallery, open_search, score_group
from facetrain.evaluation.result import tpr_name
from facetrain.evaluation.scores import tpr_at_fpr


def people(count=300, persons=30, size=16, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, persons, count) * 7
    return (rng.normal(size=(persons * 7, size))[labels] + rng.normal(size=(count, size))).astype(np.float32), labels


def everybody(labels):
    return Group("", np.arange(len(labels)))


@pytest.mark.parametrize("rule", ["strict", "nearest"])
def test_numbers_are_those_of_all_pairs(rule):
    rows, labels = people()
    scored = score_group(rows, labels, everybody(labels), Protocol(rule=rule), each=3)
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    matrix = unit @ unit.T
    first, second = np.triu_indices(len(rows), 1)
    scores, same = matrix[first, second], labels[first] == labels[second]
    fprs = [1e-1, 1e-2, 1e-3, 1e-4]  # some 43,000 impostor pairs decide none at 1e-5
    for cell, expected in zip(scored.cells, tpr_at_fpr(scores, same, fprs, rule), strict=True):
        assert replace(cell, threshold=0) == replace(expected, threshold=0)
        assert cell.threshold == pytest.approx(expected.threshold, abs=3e-7)
    np.fill_diagonal(matrix, -1)
    assert scored.metrics["rank-1"] == pytest.approx((labels[matrix.argmax(1)] == labels).mean(), abs=1e-12)
    assert scored.switches["genuine pairs"] == same.sum()
    assert scored.switches["impostor pairs"] == (~same).sum()
    counted = scored.histogram
    for kind, counts in ((same, counted.genuine), (~same, counted.impostor)):
        np.testing.assert_array_equal(np.histogram(scores[kind], counted.edges)[0], counts)
    assert 32 <= len(counted.genuine) <= 65
    assert (scored.roc.x[0], scored.roc.y[-1]) == (0, 1)


def test_the_histogram_method_is_as_good_as_it_says():
    rows, labels = people()
    exact, binned = (
        score_group(rows, labels, everybody(labels), Protocol(method=method), each=3)
        for method in ("exact", "histogram")
    )
    assert binned.switches["bin width"] == BIN
    for true, cell in zip(exact.cells, binned.cells, strict=True):
        bound = binned.figures[f"{tpr_name(cell.fpr)} too low by at most"]
        assert 0 <= true.tpr - cell.tpr <= bound + 1e-9
        assert cell.impostors <= true.impostors
    assert exact.metrics == binned.metrics
    assert (exact.roc, exact.histogram) == (binned.roc, binned.histogram)


def test_the_histogram_has_bins_where_scores_are():
    for offset in (0, 3, 30, 300, 10**6):  # ever narrower, close to 1
        rows, labels = people(count=40, persons=8)
        scored = score_group(rows + offset, labels, everybody(labels), Protocol(), each=2)
        edges, counts = scored.histogram.edges, np.array([scored.histogram.genuine, scored.histogram.impostor])
        assert tuple(counts.sum(axis=1)) == (scored.switches["genuine pairs"], scored.switches["impostor pairs"])
        assert counts[:, 0].any()
        assert counts[:, -1].any()
        assert len(edges) <= 66
        assert np.unique(np.diff(edges)).size == 1
        assert offset > 30 or len(edges) > 30


def test_the_bound_belongs_to_the_strict_rule():
    rows, labels = people(count=60)
    for rule in ("strict", "nearest"):
        scored = score_group(rows, labels, everybody(labels), Protocol(method="histogram", rule=rule), each=2)
        assert any("too low by at most" in name for name in scored.figures) == (rule == "strict")


def test_open_search_by_definition():
    rows, labels = people(seed=3)
    which = np.arange(20, 290)
    found, switches, alarms = open_search(rows, labels, which, Protocol(fpirs=(0.05, 0.2, 1.0), seed=5))
    gallery, probes = draw_gallery(labels, which, 5)
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    enrolled = {labels[i]: i for i in gallery}
    strangers = [max(unit[p] @ unit[g] for g in gallery) for p in probes if labels[p] not in enrolled]
    mates = [p for p in probes if labels[p] in enrolled]
    for fpir in (0.05, 0.2, 1.0):
        thresholds = [np.inf, *(unit[probes] @ unit[gallery].T).ravel()]
        allowed = [t for t in thresholds if np.mean(np.array(strangers) >= t) <= fpir]
        hits = [
            p
            for p in mates
            if unit[p] @ unit[enrolled[labels[p]]] >= min(allowed)
            and all(unit[p] @ unit[g] < unit[p] @ unit[enrolled[labels[p]]] for g in gallery if labels[g] != labels[p])
        ]
        assert found[f"TPIR@FPIR={fpir:g}"] == pytest.approx(len(hits) / len(mates), abs=1e-12)
        assert alarms[f"false alarms at FPIR={fpir:g}"] == sum(s >= min(allowed) for s in strangers)
    assert (switches["gallery"], switches["mated probes"]) == (len(gallery), len(mates))
    assert switches["non-mated probes"] == len(strangers)


def test_chunks_of_probes_do_not_matter(monkeypatch):
    rows, labels = people()
    whole = open_search(rows, labels, np.arange(300), Protocol())
    monkeypatch.setattr(openset_scores, "_PROBES", 7)
    assert open_search(rows, labels, np.arange(300), Protocol()) == whole


def test_who_is_enrolled():
    labels = np.repeat([5, 9, 2, 7, 11, 30, 31, 32], [3, 4, 2, 6, 5, 1, 1, 2])
    which = np.arange(len(labels))
    gallery, probes = draw_gallery(labels, which, 0)
    assert len(gallery) == len(set(labels[gallery])) == 3  # half of six people with two images or more
    assert not set(labels[gallery]) & {30, 31}
    np.testing.assert_array_equal(np.sort(np.concatenate((gallery, probes))), which)
    draws = {tuple(draw_gallery(labels, which, seed)[0]) for seed in range(20)}
    assert len(draws) > 10
    again = draw_gallery(labels, which, 0)
    np.testing.assert_array_equal(again[0], gallery)
    order = np.argsort(np.random.default_rng(0).permutation(9)[labels % 9], kind="stable")  # people in another order
    assert set(order[draw_gallery(labels[order], which, 0)[0]]) == set(gallery)


def test_one_of_two_people_is_enrolled_and_those_with_one_image_never():
    assert len(draw_gallery(np.array([1, 1, 2, 2]), np.arange(4), 0)[0]) == 1
    assert draw_gallery(np.array([1, 2, 2, 3]), np.arange(4), 0)[0][0] in (1, 2)


def test_a_group_is_scored_as_if_there_were_no_others():
    rows, labels = people()
    which = np.flatnonzero(labels % 2)
    apart = score_group(rows[which], labels[which], everybody(which), Protocol(), each=3)
    within = score_group(rows, labels, Group("head", which), Protocol(), each=3)
    assert within == apart


def test_order_of_images_does_not_matter_to_pairs():
    rows, labels = people()
    order = np.random.default_rng(1).permutation(300)
    whole = score_group(rows, labels, everybody(labels), Protocol(), each=2)
    mixed = score_group(rows[order], labels[order], everybody(labels), Protocol(), each=2)
    assert [replace(cell, threshold=0) for cell in mixed.cells] == [replace(cell, threshold=0) for cell in whole.cells]
    assert mixed.metrics["rank-1"] == whole.metrics["rank-1"]


def test_rates_that_no_impostor_decides_are_left_out():
    rows, _ = people()
    for people_there, fprs in ((13, [1e-1]), (14, [1e-1, 1e-2])):  # 90 and 104 impostor pairs
        labels = np.append(np.arange(people_there), 0)
        scored = score_group(rows[: len(labels)], labels, everybody(labels), Protocol(), each=2)
        assert scored.switches["impostor pairs"] == people_there * (people_there + 1) // 2 - 1
        assert [cell.fpr for cell in scored.cells] == fprs
    few = score_group(rows[:3], np.array([1, 1, 2]), everybody(labels[:3]), Protocol(), each=2)
    assert [(cell.fpr, cell.impostors) for cell in few.cells] == [(1e-1, 0)]


def test_what_cannot_be_scored_is_named(monkeypatch):
    rows, labels = people()
    with pytest.raises(InputError, match="the people are 1 with 5 images: 10 same-person and 0 different-person pairs"):
        check_group(np.zeros(5, int), Group("", np.arange(5)), Protocol())
    with pytest.raises(InputError, match="the tail people are 4 with 4 images: 0 same-person and 6 different-person"):
        check_group(np.arange(4), Group("tail", np.arange(4)), Protocol())
    rows[[8, 11], 3] = np.nan
    with pytest.raises(InputError, match="2 of 300 are not finite, the first that of album page 8;"):
        score_group(rows, labels, everybody(labels), Protocol(), each=2, where="album page {}".format)
    monkeypatch.setattr(openset_scores, "MOST_KEPT", 1000)
    with pytest.raises(InputError, match=r"would keep 5,\d\d\d numbers \(0\.0 GB\); use --method histogram"):
        check_group(labels, everybody(labels), Protocol())
    with pytest.raises(
        InputError, match=r"would keep 2\d,\d\d\d numbers .*; use --no-intervals, or --method histogram"
    ):
        check_group(labels, everybody(labels), Protocol(intervals=True))
    check_group(labels, everybody(labels), Protocol(method="histogram"))
    check_group(labels, everybody(labels), Protocol(fprs=(1e-4,), method="histogram"))
    with pytest.raises(InputError, match="--intervals needs the scores, which --method histogram does not keep"):
        check_group(labels, everybody(labels), Protocol(method="histogram", intervals=True))
    many = np.append(np.arange(MOST_PEOPLE + 1), 0)
    rare = Protocol(fprs=(1e-8,))
    check_group(many, everybody(many), replace(rare, intervals=False))
    with pytest.raises(InputError, match="the people are 65,537; --intervals can tell 65,536 apart"):
        check_group(many, everybody(many), replace(rare, intervals=True))


def test_intervals_change_nothing_else_and_are_made_where_they_are_cheap(monkeypatch):
    rows, labels = people()

    def scored(**changes):
        return score_group(rows, labels, everybody(labels), Protocol(**changes), each=3)

    plain, left_open = scored(intervals=False), scored()
    assert plain.intervals == {}
    assert list(left_open.intervals) == ["TPR@1e-1", "TPR@1e-2", "TPR@1e-3", "TPR@1e-4", "rank-1"]
    assert replace(left_open, intervals={}) == plain
    assert scored(method="histogram").intervals == {}
    with monkeypatch.context() as change:
        change.setattr(openset_intervals, "CHEAP", 1500)  # 1,439 same-person pairs, and 30 people
        assert scored() == plain
        assert scored(intervals=True) == left_open
    with monkeypatch.context() as change:
        change.setattr(openset_scores, "MOST_KEPT", 10_000)
        assert scored() == plain
