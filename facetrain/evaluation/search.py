"""Exact search by inner product: every query against every row of a gallery, block by block, never (Q, N) in memory.

The product is one matrix product per block, and what is read out of it afterwards touches only rows of it whose largest
score still matters, so that a search costs little more than the products alone. A gallery may lie on disk (a read-only
memory map), be float16, or be any iterable of blocks; no more than a block of it is turned into float32 at a time.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facetrain.errors import InputError
from facetrain.evaluation.search_blocks import BLOCK, Gallery, scored_blocks

MANY = 8
"""Limits in reach of a row of scores from which on the row is sorted once instead of compared with each of them."""


def nearest(
    queries: NDArray, gallery: Gallery, k: int = 1, *, block: int = BLOCK, device: torch.device | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The ``k`` gallery rows with the largest inner products, of each query.

    Args:
        queries: (Q, D) real, at least one; not normalised here.
        gallery: N rows, see :data:`Gallery`.
        k: how many, at most N.
        block: gallery rows at a time.
        device: where the products are computed; None: the CPU.

    Returns:
        scores (Q, k) float32, falling, and rows (Q, k) int64; of equal scores the lower row comes first.

    Raises:
        InputError: shapes do not fit, a number is not finite, or the gallery has fewer than ``k`` rows.
    """
    if k < 1:
        raise InputError(f"k = {k} must be 1 or more")
    best = np.full((len(queries), k), -np.inf, np.float32)
    found = np.full((len(queries), k), -1, np.int64)
    total = 0
    for at, start, scores in scored_blocks(queries, gallery, block=block, device=device):
        total = start + scores.shape[1]
        # An equal score of a later row does not displace one, hence strictly larger.
        better = np.flatnonzero(scores.amax(dim=1).cpu().numpy() > best[at, -1])
        if len(better) == 0:
            continue
        chosen = scores if len(better) == len(scores) else scores[torch.from_numpy(better).to(scores.device)]
        values, places = _top(chosen, min(k, scores.shape[1]))
        into = at.start + better
        values = np.concatenate([best[into], values], axis=1)
        places = np.concatenate([found[into], places + start], axis=1)
        order = np.lexsort((places, -values))[:, :k]
        best[into], found[into] = np.take_along_axis(values, order, 1), np.take_along_axis(places, order, 1)
    if k > total:
        raise InputError(f"k = {k} is more than the gallery's {total} rows; lower it")
    return best, found


def count_above(
    queries: NDArray,
    gallery: Gallery,
    limits: NDArray,
    *,
    ties: bool = False,
    block: int = BLOCK,
    device: torch.device | None = None,
) -> NDArray[np.int64]:
    """How many gallery rows score above each query's limits: the 0-based place of a mate that has that score.

    Args:
        queries: (Q, D) real, at least one.
        gallery: see :data:`Gallery`.
        limits: (Q,) or (Q, M) scores; a row with fewer than M is filled up with inf, which counts nothing.
        ties: count a row that scores exactly a limit too.
        block: gallery rows at a time.
        device: where the products are computed; None: the CPU.

    Returns:
        int64 of the shape of ``limits``.

    Raises:
        InputError: shapes do not fit, or a number is not finite.
    """
    counter = Counter(limits.reshape(len(queries), -1), ties)
    for at, _, scores in scored_blocks(queries, gallery, block=block, device=device):
        counter.take(at, scores)
    return counter.counts.reshape(limits.shape)


class Counter:
    """Counts scores above limits, a block at a time; see :func:`count_above`."""

    def __init__(self, limits: NDArray, ties: bool = False) -> None:
        """Limits (Q, M), filled up with inf; InputError where one is NaN."""
        if np.isnan(limits).any():
            raise InputError("limits hold NaN; expected scores, or inf where there is none")
        self.ties = ties
        self._order = np.argsort(limits, axis=1, kind="stable")
        self._limits = np.take_along_axis(limits, self._order, 1).astype(np.float32)
        self._counts = np.zeros(limits.shape, np.int64)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(Q, M) so far."""
        counts = np.empty_like(self._counts)
        np.put_along_axis(counts, self._order, self._counts, 1)
        return counts

    def take(self, at: slice, scores: Tensor) -> None:
        """Count a block of :func:`scored_blocks`."""
        limits, counts = self._limits[at], self._counts[at]
        if not _numpy_sees(scores):
            rising = torch.from_numpy(limits).to(scores.device)
            below = torch.searchsorted(scores.sort(dim=1).values, rising, right=not self.ties)
            counts += scores.shape[1] - below.cpu().numpy()
            return
        largest = scores.amax(dim=1).numpy()[:, None]
        reach = ((limits <= largest) if self.ties else (limits < largest)).sum(axis=1)
        side: Literal["left", "right"] = "left" if self.ties else "right"
        compare = np.greater_equal if self.ties else np.greater
        values = scores.numpy()
        for i in np.flatnonzero(reach).tolist():
            near = limits[i, : reach[i]]
            if len(near) >= MANY:
                counts[i, : len(near)] += scores.shape[1] - np.searchsorted(np.sort(values[i]), near, side)
            else:
                counts[i, : len(near)] += [np.count_nonzero(compare(values[i], limit)) for limit in near]


class Largest:
    """The ``k`` largest scores of all queries together, a block at a time, each with its query."""

    def __init__(self, k: int) -> None:
        self.k = k
        self._floor = -np.inf
        self._scores = [np.empty(0, np.float32)]
        self._queries = [np.empty(0, np.int32)]
        self._held = 0

    def take(self, at: slice, scores: Tensor) -> None:
        """Look through a block of :func:`scored_blocks`."""
        if not _numpy_sees(scores):
            flat = scores.flatten()
            values, places = (x.cpu().numpy() for x in flat.topk(min(self.k, len(flat)), sorted=False))
            keep = values > self._floor
            self._add(values[keep], at.start + places[keep] // scores.shape[1])
            return
        largest, values = scores.amax(dim=1).numpy(), scores.numpy()
        for i in np.flatnonzero(largest > self._floor).tolist():
            row = values[i]
            picked = row[row > self._floor]
            self._add(picked, np.full(len(picked), at.start + i))

    def _add(self, scores: NDArray, queries: NDArray) -> None:
        self._scores.append(scores)
        self._queries.append(queries.astype(np.int32))
        self._held += len(scores)
        if self._held > 2 * self.k + BLOCK:
            self._shrink()

    def _shrink(self) -> None:
        scores, queries = np.concatenate(self._scores), np.concatenate(self._queries)
        if len(scores) > self.k:
            keep = np.argpartition(scores, len(scores) - self.k)[len(scores) - self.k :]
            scores, queries = scores[keep], queries[keep]
            self._floor = float(scores.min())
        self._scores, self._queries, self._held = [scores], [queries], len(scores)

    def falling(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """(scores, queries) of at most ``k`` so far, largest first; which of those that equal the last is not fixed."""
        self._shrink()
        order = np.argsort(-self._scores[0], kind="stable")
        return self._scores[0][order], self._queries[0][order]


def _numpy_sees(scores: Tensor) -> bool:
    """Whether NumPy can look through single rows, which is faster where most rows need no look; a GPU takes all."""
    return scores.device.type == "cpu"


def _top(scores: Tensor, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k largest of each row and their places; of equal ones those with the lowest places, in any order."""
    if k == 1 and _numpy_sees(scores):
        first = scores.numpy().argmax(axis=1)[:, None]  # of equals the first
        return np.take_along_axis(scores.numpy(), first, 1), first
    if k == 1:
        values, places = scores.max(dim=1, keepdim=True)  # as well
    else:
        values, places = scores.topk(min(k + 1, scores.shape[1]), dim=1)
        if values.shape[1] > k:
            tied = (values[:, k - 1] == values[:, k]).nonzero().flatten()
            values, places = values[:, :k].clone(), places[:, :k].clone()
            if len(tied):  # topk may have taken any of the equals
                values[tied], places[tied] = (x[:, :k] for x in scores[tied].sort(dim=1, descending=True, stable=True))
    return values.cpu().numpy(), places.cpu().numpy()
