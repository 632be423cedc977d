"""Cosines of millions of pairs of templates, in blocks: through products of whole blocks where pairs are dense."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluation.identification import NO_FACE, without_face

Method = Literal["auto", "product", "gather"]
_CELLS_PER_PAIR = 70
"""A pair's own two rows cost as much to fetch as so many cells of a matrix product to compute, whatever D is."""
_BLOCK_BYTES = 80 << 20
"""Of a block of the product. Each block has the BLAS library rearrange all of the right side once more, which costs
more than that scores are picked from memory instead of from the processor's cache."""
_GATHER = 1024  # pairs whose rows are fetched at once
_EVEN = 64
_AT_ONCE = 1 << 15
_SAMPLED = 61  # of so many pairs one is looked at first


def pair_scores(
    templates: NDArray[np.float32],
    first: NDArray[np.int32],
    second: NDArray[np.int32],
    *,
    method: Method = "auto",
    block_bytes: int = _BLOCK_BYTES,
) -> NDArray[np.float32]:
    """Dot products of pairs of rows.

    Args:
        templates: (T, D) float32, normalised; a zero row is a template without a face, its scores are -1.
        first: (P,) rows; where they do not rise, sorting them takes time and 20 bytes a pair.
        second: (P,) rows.
        method: ``product``: products of blocks of all rows that occur in ``first`` with all that occur in ``second``,
            from which the pairs are picked; ``gather``: the rows of each pair are fetched and multiplied. ``auto``
            takes what costs less: with IJB-C's 3,531 by 19,593 templates for 15.7 million pairs, the product.
        block_bytes: about the size of a block of the product.

    Returns:
        (P,) float32, in the order of the pairs.
    """
    scores = np.empty(len(first), np.float32)
    if not len(first):
        return scores
    right = _occurring(second, len(templates))
    rising = bool((first[1:] >= first[:-1]).all())
    edges = np.searchsorted(first, np.arange(len(templates) + 1, dtype=first.dtype)) if rising else None
    left = len(_occurring(first, len(templates))) if edges is None else int((np.diff(edges) > 0).sum())
    dense = left * len(right) < _CELLS_PER_PAIR * len(first)
    if not (method == "product" or (method == "auto" and dense)):
        _by_gather(templates, first, second, scores)
    elif edges is not None:
        _by_product(templates, edges, second, right, scores, block_bytes)
    else:
        order = np.argsort(first, kind="stable")
        edges = np.append(0, np.cumsum(np.bincount(first, minlength=len(templates))))
        sorted_scores = np.empty_like(scores)
        _by_product(templates, edges, second[order], right, sorted_scores, block_bytes)
        scores[order] = sorted_scores
    no_face = without_face(templates)
    if no_face.any():
        scores[no_face[first] | no_face[second]] = NO_FACE
    return scores


def _occurring(numbers: NDArray[np.int32], total: int) -> NDArray[np.int64]:
    """The distinct numbers, rising; or all from the lowest to the highest, where a sample has nine in ten of them."""
    low, high = int(numbers.min()), int(numbers.max()) + 1
    seen = np.zeros(total, np.bool_)
    seen[numbers[::_SAMPLED]] = True
    if 10 * np.count_nonzero(seen) >= 9 * (high - low):
        return np.arange(low, high)
    for start in range(0, len(numbers), _AT_ONCE):  # 8 bytes long while they are indices
        seen[numbers[start : start + _AT_ONCE].astype(np.intp)] = True
    return np.flatnonzero(seen)


def _by_product(
    templates: NDArray[np.float32],
    edges: NDArray[np.int64],
    second: NDArray[np.int32],
    right: NDArray[np.int64],
    scores: NDArray[np.float32],
    block_bytes: int,
) -> None:
    """Pairs ``edges[t]`` to ``edges[t + 1]`` have template t first; ``right`` has those that occur second."""
    left = np.flatnonzero(np.diff(edges))
    run = slice(int(right[0]), int(right[-1]) + 1)
    whole = run.stop - run.start == len(right)
    columns = templates[run] if whole else templates[right]
    first_column = np.int32(right[0])
    place = np.zeros(0 if whole else len(templates), np.intp)
    if not whole:
        place[right] = np.arange(len(right))
    height = max(1, block_bytes // (4 * len(right)))
    if height > _EVEN:  # odd heights cost a BLAS library some per cent
        height -= height % _EVEN
    block = np.empty((min(height, len(left)), len(right)), np.float32)
    for start in range(0, len(left), height):
        rows = left[start : start + height]
        np.matmul(templates[rows], columns.T, out=block[: len(rows)])
        for row, begin, end in zip(block, edges[rows].tolist(), edges[rows + 1].tolist(), strict=False):
            wanted = second[begin:end] - first_column if whole else place.take(second[begin:end], mode="clip")
            row.take(wanted, out=scores[begin:end], mode="clip")


def _by_gather(
    templates: NDArray[np.float32],
    first: NDArray[np.int32],
    second: NDArray[np.int32],
    scores: NDArray[np.float32],
) -> None:
    size = min(_GATHER, len(first))
    own, other = (np.empty((size, templates.shape[1]), np.float32) for _ in range(2))
    for start in range(0, len(first), size):
        part = slice(start, start + size)
        count = len(first[part])
        np.take(templates, first[part], axis=0, out=own[:count], mode="clip")
        np.take(templates, second[part], axis=0, out=other[:count], mode="clip")
        np.einsum("nd,nd->n", own[:count], other[:count], out=scores[part])
