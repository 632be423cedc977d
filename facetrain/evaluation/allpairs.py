"""All pairs of a labelled set, scored block by block over the upper triangle: never an N x N matrix. NumPy only.

Every pair is counted in fine bins, which gives the ROC for plots and, by itself, the ``histogram`` method. The exact
method keeps, besides, all genuine scores and the largest impostor scores, which are all that a TPR@FPR table needs; and
where that is asked for who is on each of these pairs, which a bootstrap over people needs.

Scores are float32 cosines. They do not depend on blocks or order beyond the last bits that the BLAS library's order of
summation decides; where products are exact, everything here is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.errors import InputError
from facetrain.evaluation.largest import MOST_PEOPLE, Largest, packed, unpacked
from facetrain.evaluation.scores import Cell, Roc, Rule, cell_of, check_rates, point_at

BLOCK = 1024
"""Rows of a block: its scores, 4 MiB, stay near the processor."""
HALF = 1 << 17
"""Bins from score 0 to score 1; as many below, and one for scores of exactly 1."""
BIN = 1 / HALF
"""Width of a bin: how far a threshold of the histogram method may lie from the exact one."""


@dataclass(frozen=True)
class AllPairs:
    """Scores of all pairs of n images.

    Attributes:
        genuine_bins: (2 HALF + 1,) int64, pairs of one person by score: bin b holds b / HALF - 1 and what is less than
            ``BIN`` above.
        impostor_bins: pairs of two people, the same way.
        genuine: all genuine scores, float32 in no order; empty where none were asked for.
        impostor: the largest impostor scores, float32, as many as were asked for; in no order, or falling with people.
        genuine_people: int32, whose each of ``genuine`` is: places in the rising list of labels; empty where people
            were not asked for.
        impostor_people: (M, 2) uint16, both people of each of ``impostor``, the first being the lower; the same way.
        best_genuine: (n,) float32, the best score of each image with another of its person; -inf without one.
        best_impostor: (n,) float32, with anybody else.
    """

    genuine_bins: NDArray[np.int64]
    impostor_bins: NDArray[np.int64]
    genuine: NDArray[np.float32]
    impostor: NDArray[np.float32]
    genuine_people: NDArray[np.int32]
    impostor_people: NDArray[np.uint16]
    best_genuine: NDArray[np.float32]
    best_impostor: NDArray[np.float32]

    @property
    def mated(self) -> NDArray[np.bool_]:
        """(n,) which images have another of their person."""
        return self.best_genuine > -np.inf

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Of each of the mated images whether its best mate scores above everybody else; equal is no hit."""
        return self.best_genuine[self.mated] > self.best_impostor[self.mated]

    @property
    def rank1(self) -> float:
        """Share of hits; NaN: no mates."""
        hits = self.hits
        return float(hits.mean()) if len(hits) else float("nan")


def pair_counts(labels: ArrayLike) -> tuple[int, int]:
    """(genuine, impostor) pairs among images with these labels."""
    sizes = [int(n) for n in np.unique(np.asarray(labels), return_counts=True)[1]]
    genuine = sum(n * (n - 1) // 2 for n in sizes)
    return genuine, sum(sizes) * (sum(sizes) - 1) // 2 - genuine


def scales(
    rows: NDArray, which: NDArray[np.int64], where: Callable[[int], str] = "row {}".format, block: int = BLOCK
) -> NDArray[np.float32]:
    """What each of some rows is multiplied with to have length 1; 0 for a row of zeros, which stays what it is.

    Args:
        rows: (N, D) real.
        which: (n,) the rows meant.
        where: how a message names a row.
        block: rows at a time.

    Returns:
        (n,) float32.

    Raises:
        InputError: not a matrix of real numbers, or a row is not finite.
    """
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise InputError(f"embeddings {rows.shape} {rows.dtype} must be (N, D) real numbers")
    norms = np.empty(len(which))
    for start in range(0, len(which), block):
        part = rows[which[start : start + block]].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            norms[start : start + block] = np.sqrt(np.einsum("nd,nd->n", part, part))
    bad = which[~np.isfinite(norms)]
    if len(bad):
        raise InputError(
            f"embeddings: {len(bad)} of {len(which)} are not finite, the first that of {where(int(bad.min()))}; look "
            "at what made it"
        )
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0).astype(np.float32)


def unit_rows(rows: NDArray, which: NDArray[np.int64], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows ``which``, multiplied with their :func:`scales`, as a copy: (n, D) float32."""
    return np.asarray(rows[which].astype(np.float32, copy=False) * scale[:, None])


def all_pairs(
    rows: NDArray,
    labels: ArrayLike,
    *,
    which: NDArray[np.int64] | None = None,
    keep: int | None = None,
    people: bool = False,
    block: int = BLOCK,
    where: Callable[[int], str] = "row {}".format,
    progress: Callable[[int], None] | None = None,
) -> AllPairs:
    """Score every pair of images once. Besides the rows and what it returns it holds only some blocks.

    Args:
        rows: (N, D) real, not normalised; a memory map will do.
        labels: (N,) integers, who each image shows.
        which: (n,) numbers of the images to compare; None: all.
        keep: how many of the largest impostor scores to keep, and with them all genuine ones; None: no scores.
        people: keep who is on each of these pairs, too: 8 bytes a pair instead of 4.
        block: rows at a time.
        where: how a message names a row.
        progress: told how many more pairs are done.

    Raises:
        InputError: sizes do not fit, a row is not finite, or more people than can be kept.
    """
    whose = np.asarray(labels)
    if whose.shape != rows.shape[:1] or whose.dtype.kind not in "iu":
        raise InputError(f"labels {whose.shape} {whose.dtype} must be one integer for each of {len(rows)} embeddings")
    chosen = np.arange(len(rows)) if which is None else which
    order = np.argsort(whose[chosen], kind="stable")  # so that few blocks hold genuine pairs
    images = chosen[order]
    names, persons = np.unique(whose[images], return_inverse=True)
    if people and len(names) > MOST_PEOPLE:
        raise InputError(f"labels: {len(names):,} people; who is on each pair can be kept of {MOST_PEOPLE:,} at most")
    genuine, impostor = pair_counts(persons)
    tally = _Tally(persons.astype(np.int32), 0 if keep is None else genuine, min(keep or 0, impostor), block, people)
    for a, b, left, right in _blocks(rows, images, scales(rows, images, where, block), block):
        scores = left @ right.T
        tally.take(a, b, scores)
        if progress:
            progress(len(left) * (len(left) - 1) // 2 if a == b else scores.size)
    return tally.result(order)


def _blocks(
    rows: NDArray, images: NDArray[np.int64], scale: NDArray[np.float32], block: int
) -> Iterator[tuple[int, int, NDArray[np.float32], NDArray[np.float32]]]:
    """(first row, first column, their rows) of each block of the upper triangle, the diagonal's included."""
    starts = range(0, len(images), block)
    for a in starts:
        left = unit_rows(rows, images[a : a + block], scale[a : a + block])
        for b in starts[a // block :]:
            right = slice(b, b + block)
            yield a, b, left, left if a == b else unit_rows(rows, images[right], scale[right])


class _Tally:
    """Counts and keeps what :class:`AllPairs` holds, a block at a time.

    ``persons`` (n,) says who each image shows, in the order that blocks have: rising from 0.
    """

    def __init__(
        self, persons: NDArray[np.int32], genuine: int, impostor: int, block: int, people: bool = False
    ) -> None:
        self.persons, self.people = persons, people
        self.bins = np.zeros((2, 2 * HALF + 1), np.int64)
        self.best = np.full((2, len(persons)), -np.inf, np.float32)
        self.genuine, self.filled = np.empty(genuine, np.float32), 0
        self.owners = np.empty(genuine if people else 0, np.int32)
        self.largest = Largest(impostor, block * block, np.uint64 if people else np.float32)

    def take(self, a: int, b: int, scores: NDArray[np.float32]) -> None:
        """A block whose rows are images a, a + 1, ... and whose columns are b, b + 1, ..."""
        left, right = self.persons[a : a + len(scores)], self.persons[b : b + scores.shape[1]]
        if a != b and left[-1] < right[0]:  # nobody is on both sides
            self._impostor(scores.ravel(), scores, left, right)
            self._improve(1, a, b, scores)
            return
        same = left[:, None] == right
        counted = np.tri(len(left), dtype=np.bool_).T & ~np.eye(len(left), dtype=np.bool_) if a == b else True
        mates, others = same & counted, ~same & counted
        self._genuine(scores[mates], np.broadcast_to(left[:, None], scores.shape)[mates] if self.people else None)
        apart = np.where(others, scores, -np.inf)
        self._impostor(scores[others], apart, left, right)
        self._improve(0, a, b, np.where(mates, scores, -np.inf))
        self._improve(1, a, b, apart)

    def _genuine(self, scores: NDArray[np.float32], owners: NDArray[np.int32] | None) -> None:
        self.bins[0] += _count(scores)
        if len(self.genuine):
            new = slice(self.filled, self.filled + len(scores))
            self.genuine[new] = scores
            if owners is not None:
                self.owners[new] = owners
            self.filled += len(scores)

    def _impostor(self, scores: NDArray[np.float32], apart: NDArray[np.float32], left: NDArray, right: NDArray) -> None:
        """``scores`` of a block's impostor pairs, and the block with -inf ``apart`` from them."""
        self.bins[1] += _count(scores)
        if not self.people:
            self.largest.add(scores)
        elif self.largest.count:
            floor = self.largest.floor
            least = np.finfo(np.float32).min if floor is None else unpacked(np.array([floor]))[0][0]
            row, column = np.nonzero(apart >= least)
            self.largest.add(packed(apart[row, column], left[row], right[column]))

    def _improve(self, kind: int, a: int, b: int, scores: NDArray[np.float32]) -> None:
        for start, axis in ((a, 1), (b, 0)):
            best = self.best[kind, start : start + scores.shape[1 - axis]]
            np.maximum(best, scores.max(axis=axis), out=best)

    def result(self, order: NDArray[np.int64]) -> AllPairs:
        """What was found; ``order`` (n,) says which image each place held."""
        best = np.empty_like(self.best)
        best[:, order] = self.best
        impostor, both = self.largest.values(), np.empty((0, 2), np.uint16)
        if self.people:
            impostor.sort()
            impostor, both = unpacked(impostor[::-1])
        return AllPairs(self.bins[0], self.bins[1], self.genuine, impostor, self.owners, both, best[0], best[1])


def _count(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Scores in each bin; a power of two scales them without rounding."""
    places = np.floor(scores * np.float32(HALF)).astype(np.int64)
    places += HALF
    return np.bincount(places.clip(0, 2 * HALF, out=places), minlength=2 * HALF + 1)


def roc_of_bins(pairs: AllPairs) -> Roc:
    """The ROC at the lower edges of bins that hold anything, from (0, 0) on; lies on the exact one."""
    held = np.flatnonzero(pairs.genuine_bins + pairs.impostor_bins)[::-1]
    tps, fps = (np.append(0, np.cumsum(bins[held])) for bins in (pairs.genuine_bins, pairs.impostor_bins))
    edges = np.append(np.inf, (held - HALF) * BIN)
    return Roc(fps / fps[-1], tps / tps[-1], edges, fps)


def binned_cells(pairs: AllPairs, fprs: Sequence[float], rule: Rule) -> list[tuple[Cell, float]]:
    """The TPR@FPR table of the histogram method, whose thresholds are lower edges of bins.

    Returns:
        For each rate its cell, and by how much its TPR may lie from the exact one under the strict rule: the share of
        genuine pairs in the next bin below, which the method cannot cut. The strict rule's promise is kept: no more
        impostors than asked, and the TPR is never above the exact one.
    """
    check_rates(fprs)
    points = roc_of_bins(pairs)
    found = []
    for fpr in fprs:
        at = point_at(points, fpr, rule)
        below = points.tpr[min(at + 1, len(points.tpr) - 1)]
        found.append((cell_of(points, at, fpr), float(below - points.tpr[at])))
    return found
