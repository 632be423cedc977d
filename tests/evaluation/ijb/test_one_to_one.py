"""The 1:1 task against insightface's algorithm written out in float64 with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from ijb_toys import faces_of, nearest_tpr, random_ijb, slow_templates
from sklearn.metrics import roc_curve

from facetrain.errors import InputError
from facetrain.evaluation.ijb import one_to_one
from facetrain.evaluation.ijb.meta import IJBC, Pairs, read_enrolled, read_faces, read_pairs
from facetrain.evaluation.ijb.one_to_one import compare, template_features
from facetrain.evaluation.ijb.protocol import FPRS, PROTOCOLS, protocol_of


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("ijb")
    features, written = random_ijb(root, people=14)
    faces = read_faces(root, IJBC)
    return features, faces, read_pairs(root, IJBC, np.unique(faces.templates)), written, root


def slow_scores(features, faces, written, protocol):
    pooled = slow_templates(
        features,
        faces,
        keep_norm=protocol.keep_norm,
        detector_score=protocol.detector_score,
        unit_media=protocol.unit_media,
        fusion=protocol.template,
    )
    cosines = np.array([pooled[a] @ pooled[b] for a, b, _ in written])
    if protocol.score == "arccos":
        return 1 - np.arccos(np.clip(cosines, -1, 1)) / np.pi
    return cosines


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_gives_the_script_s_table(toy, name):
    features, faces, pairs, written, _ = toy
    protocol = protocol_of(name)
    found = compare(template_features(features, faces, protocol), pairs, protocol)
    scores = slow_scores(features, faces, written, protocol)
    same = np.array([label for _, _, label in written])
    assert [cell.fpr for cell in found.cells] == list(FPRS)
    assert [cell.tpr for cell in found.cells] == pytest.approx(nearest_tpr(scores, same, FPRS), abs=1e-12)
    for cell in found.cells:
        if np.isfinite(cell.threshold):
            assert cell.impostors == (scores[same == 0] >= cell.threshold - 1e-6).sum()


def test_strict_never_exceeds_the_rate(toy):
    features, faces, pairs, written, _ = toy
    protocol = protocol_of(fpr_rule="strict")
    found = compare(template_features(features, faces, protocol), pairs, protocol)
    scores, same = slow_scores(features, faces, written, protocol), np.array([label for _, _, label in written]) == 1
    for cell in found.cells:
        candidates = [np.inf, *scores]
        allowed = [t for t in candidates if (scores[~same] >= t).mean() <= cell.fpr]
        assert cell.tpr == max((scores[same] >= t).mean() for t in allowed)
        assert cell.impostors / (~same).sum() <= cell.fpr


def test_curve_and_histogram_are_those_of_the_scores(toy):
    features, faces, pairs, written, _ = toy
    protocol = protocol_of()
    found = compare(template_features(features, faces, protocol), pairs, protocol)
    scores, same = slow_scores(features, faces, written, protocol), np.array([label for _, _, label in written]) == 1
    fpr, tpr, _ = roc_curve(same, scores, drop_intermediate=False)
    exact = set(zip(np.round(fpr, 9), np.round(tpr, 9), strict=True))
    curve = found.curves["roc"]
    assert set(zip(np.round(curve.x, 9), np.round(curve.y, 9), strict=True)) <= exact
    assert (curve.x[0], curve.y[-1]) == (0, 1)
    edges = found.histogram.edges
    assert sum(found.histogram.genuine) == same.sum()
    assert sum(found.histogram.impostor) == (~same).sum()
    np.testing.assert_array_equal(found.histogram.impostor, np.histogram(scores[~same], edges)[0])
    assert found.metrics == {}


def test_intervals_hold_the_estimate_and_do_not_depend_on_parts(toy, monkeypatch):
    features, faces, pairs, _, root = toy
    ids = np.unique(faces.templates)
    people = np.full(len(ids), -1)
    for rest in ("gallery_G1", "gallery_G2", "probe_mixed"):
        one = read_enrolled(root / "meta" / f"ijbc_1N_{rest}.csv", IJBC, ids)
        people[one.rows] = one.subjects - 500
    templates = template_features(features, faces, protocol_of())
    found = compare(templates, pairs, protocol_of(), people)
    assert set(found.intervals) == {"TPR@1e-6", "TPR@1e-5", "TPR@1e-4", "TPR@1e-3", "TPR@1e-2"}
    low, high = found.intervals["TPR@1e-2"]
    assert low <= found.cells[4].tpr <= high
    assert low < high
    monkeypatch.setattr(one_to_one, "_PART", 3)
    assert compare(templates, pairs, protocol_of(), people).intervals == found.intervals
    monkeypatch.setattr(one_to_one, "_MOST_SUBJECTS", 3)
    assert compare(templates, pairs, protocol_of(), people).intervals == {}


def test_a_template_without_a_face_is_accepted_with_nobody():
    faces = faces_of([1, 2, 3, 4], [1, 1, 1, 1])
    features = np.array([[1, 0], [1, 0], [-1, 0], [np.nan, 0]], np.float32)
    pairs = Pairs(np.array([0, 0, 1, 0], np.int32), np.array([1, 3, 2, 3], np.int32), 2)
    for score in ("cosine", "arccos"):
        protocol = protocol_of(fpr_rule="strict", score=score)
        templates = template_features(features, faces, protocol, np.array([True, True, True, False]))
        assert templates.without_face.tolist() == [4]
        (cell,) = (cell for cell in compare(templates, pairs, protocol).cells if cell.fpr == 0.1)
        assert (cell.tpr, cell.impostors) == (0.5, 0)


def test_embeddings_that_are_not_finite_are_refused_by_name(toy):
    features, faces, *_ = toy
    wrong = features.copy()
    wrong[5, 2] = np.nan
    for name in PROTOCOLS:
        with pytest.raises(InputError, match=r"the embedding of 6\.jpg \(image 5\) is not finite"):
            template_features(wrong, faces, protocol_of(name))
    with pytest.raises(InputError, match="so large that their sums overflow"):
        template_features(np.full_like(features, 3e38), faces, protocol_of())
    with pytest.raises(InputError, match=r"features \(4, 6\) for .* images; expected \(N, D\)"):
        template_features(features[:4], faces, protocol_of())
    with pytest.raises(InputError, match="none of the 42 templates has a readable face"):
        template_features(features, faces, protocol_of(), np.zeros(len(features), bool))
