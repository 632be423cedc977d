"""All pairs of a labelled set, scored block by block over the upper triangle: never an N x N matrix. NumPy only.

Every pair is counted in fine bins, which gives the ROC for plots and, by itself, the ``histogram`` method. The exact
method keeps, besides, all genuine scores and the largest impostor scores, which are all that a TPR@FPR table needs.

Scores are float32 cosines. They do not depend on blocks or order beyond the last bits that the BLAS library's order of
summation decides; where products are exact, everything here is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.errors import InputError
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
        impostor: the largest impostor scores, float32 in no order, as many as were asked for.
        best_genuine: (n,) float32, the best score of each image with another of its person; -inf without one.
        best_impostor: (n,) float32, with anybody else.
    """

    genuine_bins: NDArray[np.int64]
    impostor_bins: NDArray[np.int64]
    genuine: NDArray[np.float32]
    impostor: NDArray[np.float32]
    best_genuine: NDArray[np.float32]
    best_impostor: NDArray[np.float32]

    @property
    def rank1(self) -> float:
        """Share of images with a mate whose best mate scores above everybody else's; equal is no hit. NaN: no mates."""
        mated = self.best_genuine > -np.inf
        hits = self.best_genuine[mated] > self.best_impostor[mated]
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
        block: rows at a time.
        where: how a message names a row.
        progress: told how many more pairs are done.

    Raises:
        InputError: sizes do not fit or a row is not finite.
    """
    people = np.asarray(labels)
    if people.shape != rows.shape[:1] or people.dtype.kind not in "iu":
        raise InputError(f"labels {people.shape} {people.dtype} must be one integer for each of {len(rows)} embeddings")
    chosen = np.arange(len(rows)) if which is None else which
    order = np.argsort(people[chosen], kind="stable")  # so that few blocks hold genuine pairs
    images = chosen[order]
    genuine, impostor = pair_counts(people[images])
    tally = _Tally(len(images), 0 if keep is None else genuine, min(keep or 0, impostor), block)
    for a, b, left, right in _blocks(rows, images, scales(rows, images, where, block), block):
        scores = left @ right.T
        tally.take(a, b, scores, people[images[a : a + len(left)]], people[images[b : b + len(right)]])
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
    """Counts and keeps what :class:`AllPairs` holds, a block at a time; images in the order that blocks have."""

    def __init__(self, images: int, genuine: int, impostor: int, block: int) -> None:
        self.bins = np.zeros((2, 2 * HALF + 1), np.int64)
        self.best = np.full((2, images), -np.inf, np.float32)
        self.genuine, self.filled = np.empty(genuine, np.float32), 0
        self.largest = _Largest(impostor, block * block)

    def take(self, a: int, b: int, scores: NDArray[np.float32], left: NDArray, right: NDArray) -> None:
        """A block whose rows are images a, a + 1, ... and whose columns are b, b + 1, ...; labels rise in each."""
        if a != b and left[-1] < right[0]:  # nobody is on both sides
            self._impostor(scores.ravel())
            self._improve(1, a, b, scores)
            return
        same = left[:, None] == right
        counted = np.tri(len(left), dtype=np.bool_).T & ~np.eye(len(left), dtype=np.bool_) if a == b else True
        self._genuine(scores[same & counted])
        self._impostor(scores[~same & counted])
        self._improve(0, a, b, np.where(same & counted, scores, -np.inf))
        self._improve(1, a, b, np.where(~same & counted, scores, -np.inf))

    def _genuine(self, scores: NDArray[np.float32]) -> None:
        self.bins[0] += _count(scores)
        if len(self.genuine):
            self.genuine[self.filled : self.filled + len(scores)] = scores
            self.filled += len(scores)

    def _impostor(self, scores: NDArray[np.float32]) -> None:
        self.bins[1] += _count(scores)
        self.largest.add(scores)

    def _improve(self, kind: int, a: int, b: int, scores: NDArray[np.float32]) -> None:
        for start, axis in ((a, 1), (b, 0)):
            best = self.best[kind, start : start + scores.shape[1 - axis]]
            np.maximum(best, scores.max(axis=axis), out=best)

    def result(self, order: NDArray[np.int64]) -> AllPairs:
        """What was found; ``order`` (n,) says which image each place held."""
        best = np.empty_like(self.best)
        best[:, order] = self.best
        return AllPairs(self.bins[0], self.bins[1], self.genuine, self.largest.scores(), best[0], best[1])


class _Largest:
    """The ``count`` largest scores of any number, in room for a quarter more and one block."""

    def __init__(self, count: int, block: int) -> None:
        self.count, self.held, self.floor = count, 0, -np.inf
        self._room = np.empty(count + count // 4 + block if count else 0, np.float32)

    def add(self, scores: NDArray[np.float32]) -> None:
        """Look through at most a block of scores."""
        if not self.count:
            return
        found = scores[scores > self.floor] if self.floor > -np.inf else scores
        if self.held + len(found) > len(self._room):
            self._shrink()
        self._room[self.held : self.held + len(found)] = found
        self.held += len(found)

    def _shrink(self) -> None:
        held = self._room[: self.held]
        if self.held > self.count:
            held.partition(self.held - self.count)
            held[: self.count] = held[self.held - self.count :]
            self.held, self.floor = self.count, float(held[: self.count].min())

    def scores(self) -> NDArray[np.float32]:
        """The largest so far, in no order; valid until more are added."""
        self._shrink()
        return self._room[: self.held]


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
