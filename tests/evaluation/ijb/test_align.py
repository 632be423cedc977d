"""Alignment against least squares by hand and Umeyama's own solution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetrain.evaluation.ijb.align import POINTS, SIZE, similarity, warp


def least_squares(points, target):
    """w = (a x - b y + c, b x + a y + d) by the normal equations of ten rows."""
    rows, values = [], []
    for (x, y), (u, v) in zip(points, target, strict=True):
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        values += [u, v]
    a, b, c, d = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    return np.array([[a, -b, c], [b, a, d]])


def umeyama(points, target):
    """Umeyama 1991, equations 40 to 42, without reflections."""
    mean, to = points.mean(axis=0), target.mean(axis=0)
    covariance = (target - to).T @ (points - mean) / len(points)
    u, singular, v = np.linalg.svd(covariance)
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v)) or 1.0])
    rotation = u @ np.diag(sign) @ v
    scale = (singular * sign).sum() / (points - mean).var(axis=0).sum()
    return np.column_stack([scale * rotation, to - scale * rotation @ mean])


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None, max_examples=60)
def test_similarity_is_the_least_squares_optimum(seed, mirrored):
    rng = np.random.default_rng(seed)
    points = POINTS * rng.uniform(0.3, 4) + rng.normal(scale=15, size=(5, 2)) + rng.uniform(-90, 90, 2)
    if mirrored:
        points[:, 0] *= -1
    (found,) = similarity(points[None])
    np.testing.assert_allclose(found, least_squares(points, POINTS), atol=1e-8)
    np.testing.assert_allclose(found, umeyama(points, POINTS), atol=1e-8)


def test_each_face_has_its_own_matrix_and_float32_landmarks_do():
    points = np.random.default_rng(0).uniform(0, 200, (7, 5, 2)).astype(np.float32)
    together = similarity(points)
    assert together.shape == (7, 2, 3)
    assert together.dtype == np.float64
    for one, matrix in zip(points, together, strict=True):
        np.testing.assert_allclose(matrix, least_squares(one.astype(np.float64), POINTS), atol=1e-6)


def test_points_are_where_insightface_has_them():
    """The five points of arcface_torch's eval_ijbc.py, whose columns are shifted by 8."""
    columns = [30.2946, 65.5318, 48.0252, 33.5493, 62.7299]
    np.testing.assert_allclose(POINTS[:, 0], np.array(columns) + 8)
    np.testing.assert_allclose(POINTS[:, 1], [51.6963, 51.5014, 71.7366, 92.3655, 92.2041])


@pytest.mark.parametrize("size", [SIZE, 56, 48])
def test_landmarks_come_to_lie_on_the_points(size):
    """A white dot on each landmark of a turned face; the crop has its dots at the points, scaled."""
    angle = 0.5
    turn = 2.2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = POINTS @ turn.T + [100, 30]
    image = np.zeros((400, 400, 3), np.uint8)
    rows, columns = np.mgrid[:400, :400]
    for number, (x, y) in enumerate(landmarks):
        image[(columns - x) ** 2 + (rows - y) ** 2 < 80] = 40 * (number + 1)
    out = np.empty((size, size, 3), np.uint8)
    warp(image, similarity(landmarks[None])[0], out)
    for number, point in enumerate(POINTS * (size / SIZE)):
        column, row = np.rint(point).astype(int)
        assert out[row, column].tolist() == [40 * (number + 1)] * 3
    assert not out[0].any()


def test_what_lies_outside_the_image_is_black_and_out_is_filled():
    image = np.full((20, 20, 3), 200, np.uint8)
    out = np.full((SIZE, SIZE, 3), 77, np.uint8)
    warp(image, similarity(POINTS[None] - 40)[0], out)
    assert set(np.unique(out)) >= {0, 200}
    assert out[5, 5].tolist() == [0, 0, 0]
    assert out[50, 50].tolist() == [200, 200, 200]
    assert 77 not in out
