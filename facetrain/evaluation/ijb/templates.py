"""From embeddings of images to one vector per template: frames to media, media to templates. NumPy only.

Sums run over images sorted by template and medium; a few hundred of them at a time are multiplied with a small matrix
of their weights, so that all is done by BLAS in one pass over the features and no loop runs over templates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.errors import InputError

TemplateFusion = Literal["sum", "mean"]
_CHUNK = 128  # images in one product
_SLAB = 8192  # images whose media are in memory at once


@dataclass(frozen=True)
class Grouping:
    """Which images make which template; rows of the features stay where they are.

    ``order`` (n,) are image numbers sorted by template and medium; ``medium`` (n,) and ``template`` (n,) say for each
    of them which it belongs to, both counted from 0. ``of_medium`` (M,) is the template of each medium, ``frames`` (M,)
    its number of images. ``ids`` (T,) are the templates' own numbers, rising.
    """

    order: NDArray[np.int64]
    medium: NDArray[np.int64]
    template: NDArray[np.int64]
    of_medium: NDArray[np.int64]
    frames: NDArray[np.int64]
    ids: NDArray[np.int64]


def group(templates: ArrayLike, media: ArrayLike, readable: ArrayLike | None = None) -> Grouping:
    """Sort images by template and medium.

    Args:
        templates: (N,) integers, the template of each image.
        media: (N,) integers, its medium: frames of one video share it. Equal media in two templates are two.
        readable: (N,) bool; other images are left out. A template may so lose all of its images: it keeps its place.
    """
    own, medium = np.asarray(templates), np.asarray(media)
    ids, row = np.unique(own, return_inverse=True)
    images = np.arange(len(own)) if readable is None else np.flatnonzero(readable)
    row, medium = row[images], medium[images]
    rising = (row[1:] > row[:-1]) | ((row[1:] == row[:-1]) & (medium[1:] >= medium[:-1]))
    order = np.arange(len(row)) if rising.all() else np.lexsort((medium, row))
    row, medium = row[order], medium[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (row[1:] != row[:-1]) | (medium[1:] != medium[:-1])
    number = np.cumsum(first) - 1
    frames = np.bincount(number) if len(order) else np.zeros(0, np.int64)
    return Grouping(images[order], number, row, row[first], frames, ids)


def pool(
    features: NDArray,
    grouping: Grouping,
    weights: NDArray | None = None,
    *,
    unit_images: bool = False,
    unit_media: bool = False,
    fusion: TemplateFusion = "sum",
) -> NDArray[np.float32]:
    """Template vectors of length 1: the mean over the frames of a medium, then sum or mean over media, then scaled.

    Args:
        features: (N, D) real, one row per image; read once, never copied as a whole.
        grouping: which rows belong together.
        weights: (N,) a factor for each image, its detector score for example; None: 1.
        unit_images: scale each image's row to length 1 first.
        unit_media: scale each medium's mean to length 1.
        fusion: ``sum`` or ``mean`` over media (equal up to rounding, as the end result is scaled).

    Returns:
        (T, D) float32; zeros for a template without images or whose sum is zero.
    """
    factors = np.ones(len(grouping.order)) if weights is None else np.asarray(weights, np.float64)[grouping.order]
    factors = factors / grouping.frames[grouping.medium]
    count = len(grouping.ids)
    if unit_media:
        pooled = np.zeros((count, features.shape[1]), np.float32)
        for images, media in _slabs(grouping):
            means = _sums(
                features,
                grouping.order[images],
                factors[images],
                grouping.medium[images] - media.start,
                media.stop - media.start,
                unit_images,
            )
            own = grouping.of_medium[media]
            every = np.arange(len(means))
            part = _sums(unit(means), every, np.ones(len(means)), own - own[0], int(own[-1] - own[0]) + 1, False)
            pooled[own[0] : own[-1] + 1] += part
    else:
        pooled = _sums(features, grouping.order, factors, grouping.template, count, unit_images)
    if fusion == "mean":
        pooled /= np.maximum(np.bincount(grouping.of_medium, minlength=count), 1)[:, None].astype(np.float32)
    return unit(pooled)


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, D) rows scaled to length 1, in place; a zero row stays zero, as scikit-learn's normalize leaves it."""
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    rows /= np.where(norms == 0, 1, norms)[:, None]
    return rows


def refuse_not_finite(features: NDArray, images: NDArray[np.int64], names: list[str]) -> None:
    """InputError that names the first of ``images`` whose row holds NaN or infinity."""
    for start in range(0, len(images), _SLAB):
        part = images[start : start + _SLAB]
        wrong = part[~np.isfinite(features[part]).all(axis=1)]
        if len(wrong):
            raise InputError(
                f"the embedding of {names[wrong[0]]} (image {wrong[0]}) is not finite: NaN or infinite numbers; embed "
                "it again, or look for a model that overflows"
            )


def _slabs(grouping: Grouping) -> Iterator[tuple[slice, slice]]:
    """(images, media) of consecutive parts of about ``_SLAB`` images, none of which cuts a template in two."""
    start, total = 0, len(grouping.order)
    while start < total:
        end = min(start + _SLAB, total)
        end = int(np.searchsorted(grouping.template, grouping.template[end - 1], side="right"))
        yield slice(start, end), slice(int(grouping.medium[start]), int(grouping.medium[end - 1]) + 1)
        start = end


def _sums(
    features: NDArray,
    order: NDArray[np.int64],
    factors: NDArray[np.float64],
    segment: NDArray[np.int64],
    count: int,
    unit_rows: bool,
) -> NDArray[np.float32]:
    """Weighted sums of rows: (count, D) float32.

    Args:
        order: (n,) rows of the features.
        factors: (n,) weights.
        segment: (n,) to which sum each goes, never falling.
    """
    sums = np.zeros((count, features.shape[1]), np.float32)
    in_file_order = bool((np.diff(order) == 1).all())
    weights, steps = factors.astype(np.float32), np.arange(_CHUNK)
    for start in range(0, len(order), _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = features[order[0] + start :][: len(order[part])] if in_file_order else features[order[part]]
        weight, own = weights[part], segment[part]
        if unit_rows:
            norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
            weight = np.asarray(weight / np.where(norms == 0, 1, norms), np.float32)
        low, high = int(own[0]), int(own[-1]) + 1
        matrix = np.zeros((high - low, len(own)), np.float32)
        matrix[own - low, steps[: len(own)]] = weight
        sums[low:high] += matrix @ rows
    return sums
