"""MegaFace's numbers against the definitions written out in float64, and what must not matter to them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks

from facetrain import keyed
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation.megaface import scores as module
from facetrain.evaluation.megaface.files import FeatureMatrix
from facetrain.evaluation.megaface.scores import (
    Distractors,
    Probes,
    Stage,
    clean_probes,
    identify,
    mate_scores,
    unit_features,
)
from facetrain.evaluation.scores import tpr_at_fpr

FPRS = (1e-1, 1e-2, 1e-3)


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def made_up(seed=0, people=(4, 3, 1, 5), distractors=200, dim=12, spread=0.9):
    """Probes (Q, D) whose people lie near each other, and distractors (N, D)."""
    random = np.random.default_rng(seed)
    who = np.repeat(np.arange(len(people)), people)
    centres = _unit(random.standard_normal((len(people), dim)))
    probes = _unit(centres[who] + spread * _unit(random.standard_normal((len(who), dim))))
    return Probes(probes, who), _unit(random.standard_normal((distractors, dim)))


def places_by_definition(probes, distractors, ties, distance=None):
    """Every g among the distractors, one pair after another, in float64: {(p, g): place}."""
    rows, others = probes.rows.astype(np.float64), distractors.astype(np.float64)
    found = {}
    for p, who in enumerate(probes.people):
        for g in np.flatnonzero(probes.people == who).tolist():
            if g == p:
                continue
            if distance is None:
                nearer = others @ rows[p] - rows[g] @ rows[p]
            else:
                nearer = distance(rows[p], rows[g]) - np.array([distance(rows[p], d) for d in others])
            found[p, g] = int((nearer >= 0).sum() if ties == "miss" else (nearer > 0).sum())
    return found


def by_pair(probes, places):
    """The same of what was found, whose order is: probes, and for each its mates."""
    pairs = [
        (p, g) for p, who in enumerate(probes.people) for g in np.flatnonzero(probes.people == who).tolist() if g != p
    ]
    return dict(zip(pairs, places.tolist(), strict=True))


def search(probes, distractors, ends=None, **options):
    ends = ends or [len(distractors)]
    starts = [0, *ends[:-1]]
    stages = [Stage(end, distractors[start:end]) for start, end in zip(starts, ends, strict=True)]
    return list(identify(probes, stages, **({"fprs": FPRS} | options)))


@pytest.mark.parametrize("ties", ["miss", "hit"])
@pytest.mark.parametrize("rule", ["strict", "nearest"])
def test_places_cmc_and_rates_equal_the_definitions_at_every_size(ties, rule):
    probes, distractors = made_up()
    outcomes = search(probes, distractors, [10, 73, 200], ties=ties, rule=rule)
    for size, outcome in zip([10, 73, 200], outcomes, strict=True):
        wanted = places_by_definition(probes, distractors[:size], ties)
        assert by_pair(probes, outcome.places) == wanted
        np.testing.assert_array_equal(outcome.owners, [probes.people[p] for p, _ in wanted])
        values = np.array(list(wanted.values()))
        assert outcome.rate(1) == (values == 0).mean()
        places, rates = outcome.cmc()
        np.testing.assert_array_equal(rates, [(values <= place).mean() for place in places])
        assert (places[0], places[-1], rates[-1]) == (0, size, 1.0)
        same = np.concatenate([np.ones(len(wanted), bool), np.zeros(len(probes.rows) * size, bool)])
        scores = probes.rows.astype(np.float64) @ np.concatenate([probes.rows, distractors[:size]]).T.astype(np.float64)
        genuine = [scores[p, g] for p, g in wanted]
        every = np.concatenate([genuine, scores[:, len(probes.rows) :].ravel()])
        for cell, definition in zip(outcome.cells, tpr_at_fpr(every, same, FPRS, rule), strict=True):
            assert (cell.tpr, cell.impostors) == (definition.tpr, definition.impostors)
            assert cell.threshold == pytest.approx(definition.threshold, abs=1e-6)
        curve = dict(zip(outcome.roc.x, outcome.roc.y, strict=True))
        total = len(probes.rows) * size
        for fpr, tpr in curve.items():
            strict = tpr_at_fpr(every, same, [fpr])[0] if fpr else None
            assert strict is None or tpr == pytest.approx(strict.tpr)
            assert round(fpr * total) == pytest.approx(fpr * total)


def test_every_rate_lies_in_its_interval():
    probes, distractors = made_up(people=(4,) * 30, spread=1.5)
    (outcome,) = search(probes, distractors, fprs=(1e-1, 1e-2))
    low, high = outcome.intervals["rank-1"]
    assert 0 < low < outcome.rate(1) < high < 1
    for cell, name in zip(outcome.cells, ("TPR@1e-1", "TPR@1e-2"), strict=True):
        low, high = outcome.intervals[name]
        assert low < cell.tpr < high


def test_a_tie_is_a_miss_or_a_hit_as_asked():
    probes = Probes(np.array([[1, 0], [0.6, 0.8]], np.float32), np.array([0, 0]))
    distractors = np.array([[0.6, -0.8], [-1, 0], [0.6, 0.8]], np.float32)
    # For probe 0 two distractors score 0.6 as its mate does; for probe 1 the third is itself and beats its mate.
    assert search(probes, distractors, ties="miss")[0].places.tolist() == [2, 1]
    assert search(probes, distractors, ties="hit")[0].places.tolist() == [0, 1]
    copies = np.concatenate([distractors, probes.rows])  # both mates again, as distractors
    assert search(probes, copies, ties="miss")[0].places.tolist() == [4, 3]
    assert search(probes, copies, ties="hit")[0].places.tolist() == [1, 2]


@given(st.integers(0, 1000), st.integers(1, 90))
@settings(deadline=None, max_examples=8)
def test_neither_order_nor_blocks_matter(seed, block):
    probes, distractors = made_up(seed, distractors=80)
    (wanted,) = search(probes, distractors)
    random = np.random.default_rng(seed)
    order, turn = random.permutation(80), random.permutation(len(probes.rows))
    cut = [distractors[order][a : a + block] for a in range(0, 80, block)]
    (same,) = identify(probes, [Stage(80, cut)], fprs=FPRS)
    np.testing.assert_array_equal(same.places, wanted.places)
    assert (same.cells, same.roc, same.intervals) == (wanted.cells, wanted.roc, wanted.intervals)
    (turned,) = search(Probes(probes.rows[turn], probes.people[turn]), distractors)
    np.testing.assert_array_equal(np.sort(turned.places), np.sort(wanted.places))
    assert (turned.cells, turned.roc) == (wanted.cells, wanted.roc)


def _on_rank(world: World, probes, distractors):
    def own(start, end):
        part = world.rows_of(end - start)
        return distractors[start + part.start : start + part.stop]

    stages = [Stage(2, own(0, 2)), Stage(60, own(2, 60)), Stage(200, own(60, 200))]
    return [
        (one.places.tolist(), one.cells, one.roc, one.intervals)
        for one in identify(probes, stages, fprs=FPRS, world=world)
    ]


def test_ranks_share_the_distractors():
    probes, distractors = made_up(spread=1.2)
    alone = _on_rank(World(), probes, distractors)
    assert len({tuple(places) for places, *_ in alone}) == 3
    for size in (2, 3):
        for found in run_ranks(size, _on_rank, probes, distractors):
            assert found == alone


def _with_a_damaged_one(world: World, probes, distractors):
    """One rank's share cannot be used; every rank must learn of it."""
    part = world.rows_of(len(distractors))
    with pytest.raises(InputError, match=r"gallery row .* holds a number that is not finite") as told:
        list(identify(probes, [Stage(200, distractors[part.start : part.stop])], world=world))
    return str(told.value)


def test_what_one_rank_cannot_read_all_ranks_tell():
    probes, distractors = made_up()
    distractors[199] = np.nan
    assert len(set(run_ranks(2, _with_a_damaged_one, probes, distractors))) == 1


def test_insightfaces_cleaning_equals_its_513_numbers_compared_by_distance():
    """Noisy distractors are 100 away in a dimension of their own; noisy probes are their person's sum, shaken."""
    probes, distractors = made_up(3, people=(4, 3, 5), spread=1.4)
    names = [f"P/{i}.jpg" for i in range(12)]
    noisy, bad = np.isin(np.arange(12), (1, 2, 9)), np.isin(np.arange(200), (0, 5, 17, 199))
    longer = np.concatenate([probes.rows, np.zeros((12, 1))], axis=1).astype(np.float64)
    for i in (1, 2, 9):
        centre = sum(longer[j] for j in range(12) if probes.people[j] == probes.people[i] and not noisy[j])
        shake = keyed.uniform(keyed.text_key("megaface: noisy probes"), keyed.text_key(names[i]), np.arange(12))
        centre[:12] += 0.002 * shake - 0.001
        longer[i] = centre / np.linalg.norm(centre)
    far = np.concatenate([distractors, np.where(bad, 100.0, 0.0)[:, None]], axis=1)
    wanted = places_by_definition(
        Probes(longer, probes.people), far, "miss", lambda a, b: float(np.square(a - b).sum())
    )
    clean = clean_probes(probes, noisy, names, "insightface")
    searched = Distractors(FeatureMatrix(distractors, "d"), np.zeros(200, bool), bad, "insightface")
    (outcome,) = identify(clean, [Stage(200, searched.blocks(np.arange(200), 33))], fprs=FPRS)
    assert by_pair(clean, outcome.places) == wanted
    np.testing.assert_allclose(clean.rows, longer[:, :12], rtol=0, atol=1e-7)
    assert (search(probes, distractors)[0].places != outcome.places).any()
    # The same from the 513 numbers as the script writes them.
    whole = Probes(longer.astype(np.float32), probes.people)
    made = Distractors(
        FeatureMatrix(far.astype(np.float32), "d"), np.zeros(200, bool), np.zeros(200, bool), "none", far=True
    )
    (again,) = identify(whole, [Stage(200, made.blocks(np.arange(200)))], fprs=FPRS)
    np.testing.assert_array_equal(again.places, outcome.places)
    # Whom nobody can reach counts among the impostors all the same.
    assert outcome.cells[0].impostors == int(0.1 * 12 * 200)


def test_facex_zoos_cleaning_equals_centres_and_zero_vectors():
    probes, distractors = made_up(4, people=(4, 3, 5), spread=2.5)
    noisy, bad = np.isin(np.arange(12), (0, 8)), np.isin(np.arange(200), (3, 4))
    rows = probes.rows.astype(np.float64)
    for i in (0, 8):
        centre = sum(rows[j] for j in range(12) if probes.people[j] == probes.people[i] and not noisy[j])
        rows[i] = centre / np.linalg.norm(centre)
    zeroed = np.where(bad[:, None], 0, distractors)
    wanted = places_by_definition(Probes(rows, probes.people), zeroed, "hit")
    clean = clean_probes(probes, noisy, [str(i) for i in range(12)], "facex-zoo")
    searched = Distractors(FeatureMatrix(distractors, "d"), np.zeros(200, bool), bad, "facex-zoo")
    (outcome,) = identify(clean, [Stage(200, searched.blocks(np.arange(200)))], ties="hit", fprs=FPRS)
    assert by_pair(clean, outcome.places) == wanted
    assert (mate_scores(clean) < 0).any()  # a zero vector comes before such a mate
    none = clean_probes(probes, noisy, [str(i) for i in range(12)], "none")
    assert none is probes


def test_distractors_without_a_feature_are_out_of_reach_and_never_read():
    probes, distractors = made_up(5)
    gone = np.isin(np.arange(200), (7, 8, 150))
    damaged = np.where(gone[:, None], np.nan, distractors).astype(np.float32)
    searched = Distractors(FeatureMatrix(damaged, "d"), gone, np.zeros(200, bool), "none")
    (outcome,) = identify(probes, [Stage(200, searched.blocks(np.arange(200), 4))], fprs=FPRS)
    np.testing.assert_array_equal(outcome.places, search(probes, distractors[~gone])[0].places)
    (nobody,) = identify(probes, [Stage(3, searched.blocks(np.array([7, 8, 150])))], fprs=FPRS)
    assert nobody.rate(1) == 1
    assert nobody.cells[0].tpr == 1


def test_features_become_length_one_and_zeros_stay():
    rows = np.array([[3, 4], [0, 0], [0.5, 0]], np.float16)
    found = unit_features(FeatureMatrix(rows, "d"), np.arange(3))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [1, 0]], atol=1e-7)
    assert found.dtype == np.float32
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError, match=r"feature m\.npy row 1 \(b\.jpg\) holds a number that is not finite"):
            unit_features(
                FeatureMatrix(np.array([[1, 0], [bad, 0]], np.float32), "m.npy", ["a.jpg", "b.jpg"]), np.arange(2)
            )


def test_what_cannot_be_identified_is_one_line():
    probes, distractors = made_up(people=(1, 1))
    with pytest.raises(InputError, match="no person has two images among the probes"):
        search(probes, distractors)
    probes, _ = made_up(people=(2, 3))
    with pytest.raises(InputError, match=r"all images of the person of Q/1\.jpg are in the noise list"):
        clean_probes(probes, np.arange(5) < 2, [f"Q/{i + 1}.jpg" for i in range(5)], "insightface")


def test_no_more_is_kept_than_the_bootstrap_needs():
    assert module._kept(3530 * 1_000_000, (1e-4, 1e-6), "strict") == 2 * 353_000 + 1000
    assert module._kept(600, (1e-4,), "strict") == 600
