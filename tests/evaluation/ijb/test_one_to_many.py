"""The 1:N task against the two galleries' searches written out."""

from __future__ import annotations

import numpy as np
import pytest
from ijb_toys import random_ijb, slow_templates

from facetrain.errors import InputError
from facetrain.evaluation.ijb.meta import IJBC, Enrolled, read_faces
from facetrain.evaluation.ijb.one_to_many import identify
from facetrain.evaluation.ijb.one_to_one import template_features
from facetrain.evaluation.ijb.protocol import protocol_of
from facetrain.evaluation.ijb.run import read_plan


def evaluation(probes, probe_ids, gallery, gallery_ids):
    """Counts of top 1, 5, 10, and TPIR at 0.01 and 0.1, as ijb_evals.py's evaluation_1N defines them."""
    top, own, best_other, strangers = np.zeros(3), [], [], []
    for probe, who in zip(probes, probe_ids, strict=True):
        similar = gallery @ probe
        if who in gallery_ids:
            at = int(np.flatnonzero(gallery_ids == who)[0])
            top += [at in np.argsort(-similar)[:k] for k in (1, 5, 10)]
            own.append(similar[at])
            best_other.append(np.delete(similar, at).max())
        else:
            strangers.append(similar.max())
    own, falling = np.array(own), sorted(strangers, reverse=True)
    tpir = []
    for fpir in (0.01, 0.1):
        threshold = falling[max(int(len(falling) * fpir) - 1, 0)]
        tpir.append(((own > np.array(best_other)) & (own > threshold)).mean())
    return top, np.array(tpir), len(own)


def test_both_galleries_and_their_mean(tmp_path):
    features, _ = random_ijb(tmp_path, people=24, dim=5)
    faces = read_faces(tmp_path, IJBC)
    plan = read_plan(tmp_path, IJBC, faces, "1:n")
    assert plan.pairs is None
    protocol = protocol_of()
    found = identify(template_features(features, faces, protocol), plan.galleries, plan.probes, protocol)
    pooled = slow_templates(features, faces, keep_norm=True, detector_score=True, unit_media=False, fusion="sum")
    rows = np.array([pooled[template] for template in sorted(pooled)])
    slow = [
        evaluation(rows[plan.probes.rows], plan.probes.subjects, rows[one.rows], one.subjects) for one in plan.galleries
    ]
    for one, (top, tpir, mated) in zip(found, slow, strict=False):
        assert list(one.metrics.values()) == pytest.approx([*(top / mated), *tpir])
    tops, tpirs, mates = (np.array([each[i] for each in slow]) for i in range(3))
    assert mates.sum() == len(plan.probes.rows)  # so dividing by all probes, as the script does, is the same
    assert list(found[2].metrics.values()) == pytest.approx([*(tops.sum(axis=0) / mates.sum()), *tpirs.mean(axis=0)])
    assert list(found[2].metrics) == ["rank-1", "rank-5", "rank-10", "TPIR@FPIR=0.01", "TPIR@FPIR=0.1"]
    assert 0 < found[2].metrics["rank-1"] < found[2].metrics["rank-5"]
    for one in found:
        assert one.curves["cmc"].y[4] == one.metrics["rank-5"]
        for name, (low, high) in one.intervals.items():
            assert low <= one.metrics[name] <= high
        assert set(one.intervals) == set(one.metrics)


def test_a_gallery_without_strangers_is_refused(tmp_path):
    features, _ = random_ijb(tmp_path)
    faces = read_faces(tmp_path, IJBC)
    plan = read_plan(tmp_path, IJBC, faces, "1:n")
    templates = template_features(features, faces, protocol_of())
    first, second = plan.galleries
    whole = Enrolled(np.concatenate((first.rows, second.rows)), np.concatenate((first.subjects, second.subjects)))
    with pytest.raises(
        InputError, match="gallery 2: 16 of 16 probes have a mate in it; an open-set search needs probes"
    ):
        identify(templates, [first, whole], plan.probes, protocol_of())
