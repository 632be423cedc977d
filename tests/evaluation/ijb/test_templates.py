"""Pooling against dictionaries of lists in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ijb_toys import faces_of, slow_templates

from facetrain.errors import InputError
from facetrain.evaluation.ijb import templates
from facetrain.evaluation.ijb.templates import group, pool, refuse_not_finite, unit


def pooled(features, faces, *, keep_norm, detector_score, unit_media, fusion, readable=None):
    grouping = group(faces.templates, faces.media, readable)
    rows = pool(
        features,
        grouping,
        faces.detector if detector_score else None,
        unit_images=not keep_norm,
        unit_media=unit_media,
        fusion=fusion,
    )
    return dict(zip(grouping.ids.tolist(), rows, strict=True))


SWITCHES = [
    {"keep_norm": a, "detector_score": b, "unit_media": c, "fusion": d}
    for a, b, c, d in itertools.product([True, False], [True, False], [True, False], ["sum", "mean"])
]


@given(st.integers(0, 2**32 - 1), st.sampled_from(SWITCHES), st.integers(1, 60), st.booleans())
@settings(deadline=None, max_examples=80)
def test_equals_lists_of_frames(seed, switches, count, tiny_parts):
    rng = np.random.default_rng(seed)
    faces = faces_of(rng.integers(5, 17, count), rng.integers(0, 4, count), rng.uniform(0.1, 1, count))
    features = rng.normal(size=(count, 5)).astype(np.float32) * rng.uniform(0.1, 9, (count, 1)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        if tiny_parts:
            patch.setattr(templates, "_CHUNK", 3)
            patch.setattr(templates, "_SLAB", 4)
        found = pooled(features, faces, **switches)
    expected = slow_templates(features, faces, **switches)
    assert found.keys() == expected.keys()
    for template, row in expected.items():
        np.testing.assert_allclose(found[template], row, atol=3e-6)


@pytest.mark.parametrize("switches", SWITCHES[::5])
def test_order_of_images_and_names_of_templates_and_media_mean_nothing(switches):
    rng = np.random.default_rng(3)
    faces = faces_of(np.sort(rng.integers(0, 30, 400)), rng.integers(0, 6, 400), rng.uniform(0.1, 1, 400))
    features = rng.normal(size=(400, 16)).astype(np.float32)
    found = pooled(features, faces, **switches)
    order = rng.permutation(400)
    renamed, media = rng.permutation(30) * 7 + 3, rng.permutation(6) * 100
    other = faces_of(renamed[faces.templates[order]], media[faces.media[order]], faces.detector[order])
    again = pooled(features[order], other, **switches)
    for template, row in found.items():
        np.testing.assert_allclose(again[renamed[template]], row, atol=1e-6)


def test_media_of_two_templates_are_two_though_they_share_a_number():
    faces = faces_of([1, 1, 2, 2], [9, 9, 9, 8])
    features = np.array([[1, 0], [0, 1], [1, 0], [0, 4]], np.float32)
    found = pooled(features, faces, keep_norm=True, detector_score=False, unit_media=True, fusion="sum")
    np.testing.assert_allclose(found[1], np.sqrt([0.5, 0.5]), rtol=1e-6)  # one medium of two frames
    np.testing.assert_allclose(found[2], np.sqrt([0.5, 0.5]), rtol=1e-6)  # two media, each of length 1


def test_unreadable_images_are_left_out_and_an_empty_template_stays_zero():
    faces = faces_of([4, 4, 4, 7, 8], [1, 1, 2, 1, 1])
    features = np.array([[1, 0], [np.nan, 0], [0, 1], [np.nan, np.nan], [3, 4]], np.float32)
    readable = np.array([True, False, True, False, True])
    for unit_media in (False, True):
        found = pooled(
            features,
            faces,
            keep_norm=True,
            detector_score=True,
            unit_media=unit_media,
            fusion="mean",
            readable=readable,
        )
        np.testing.assert_allclose(found[4], np.sqrt([0.5, 0.5]), rtol=1e-6)
        assert found[7].tolist() == [0, 0]
        np.testing.assert_allclose(found[8], [0.6, 0.8], rtol=1e-6)


def test_no_readable_image_at_all():
    grouping = group([1, 2], [1, 1], [False, False])
    for unit_media in (False, True):
        assert not pool(np.ones((2, 3), np.float32), grouping, unit_media=unit_media, unit_images=True).any()


def test_a_long_template_is_not_cut_by_a_slab(monkeypatch):
    monkeypatch.setattr(templates, "_SLAB", 2)
    grouping = group([1, 2, 2, 2, 2, 2, 3], [1, 1, 1, 2, 2, 3, 1])
    cuts = [(part.start, part.stop, media.start, media.stop) for part, media in templates._slabs(grouping)]
    assert cuts == [(0, 6, 0, 4), (6, 7, 4, 5)]


def test_unit_leaves_zero_rows():
    rows = unit(np.array([[3, 4], [0, 0]], np.float32))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_a_row_that_is_not_finite_is_named():
    features = np.ones((20, 3), np.float32)
    names = [f"face_{i}.jpg" for i in range(20)]
    refuse_not_finite(features, np.arange(20), names)
    features[[4, 11]] = [[np.inf, 0, 0], [np.nan] * 3]
    with pytest.raises(InputError, match=r"the embedding of face_4\.jpg \(image 4\) is not finite"):
        refuse_not_finite(features, np.arange(20), names)
    with pytest.raises(InputError, match=r"face_11\.jpg"):
        refuse_not_finite(features, np.arange(5, 20), names)
