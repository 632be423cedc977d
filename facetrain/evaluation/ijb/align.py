"""Faces cut out and turned upright: the similarity transform from five landmarks to the places ArcFace expects."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 112
"""Pixels a side of the crop that ``POINTS`` refer to."""
POINTS = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
"""(5, 2) columns and rows of left eye, right eye, nose tip and mouth corners, as seen (insightface's ArcFace crop)."""


def similarity(points: NDArray, target: NDArray = POINTS) -> NDArray[np.float64]:
    """Rotation, one scale and shift that bring landmarks nearest to a target, in the least-squares sense.

    In the plane such a map is ``w = a z + b`` with complex numbers, so the optimum that Umeyama (PAMI 1991, equations
    40 to 42) finds through a singular value decomposition is a quotient of two sums.

    Args:
        points: (N, P, 2) columns and rows, at least two distinct ones in each set.
        target: (P, 2) where they should come to lie.

    Returns:
        (N, 2, 3) matrices for :func:`warp`: ``[x, y, 1]`` in the image to (column, row) in the crop.
    """
    z = points[..., 0] + 1j * points[..., 1].astype(np.float64)
    w = target[:, 0] + 1j * target[:, 1]
    from_mean = z - z.mean(axis=1, keepdims=True)
    a = (from_mean.conj() * (w - w.mean())).sum(axis=1) / np.square(np.abs(from_mean)).sum(axis=1)
    b = w.mean() - a * z.mean(axis=1)
    rows = np.stack([a.real, -a.imag, b.real, a.imag, a.real, b.imag], axis=1)
    return rows.reshape(-1, 2, 3)


def warp(image: NDArray[np.uint8], matrix: NDArray[np.float64], out: NDArray[np.uint8]) -> None:
    """Cut a face out of an image, bilinear, black where the image ends, as the IJB scripts do.

    Args:
        image: (H, W, 3) uint8.
        matrix: (2, 3) from :func:`similarity`, for a crop of ``SIZE`` pixels a side.
        out: (size, size, 3) uint8: takes the crop; another size than ``SIZE`` shows the same part of the face.
    """
    size = len(out)
    cv2.warpAffine(image, matrix * (size / SIZE), (size, size), dst=out, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
