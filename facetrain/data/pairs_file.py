"""Verification pairs: drawing them from labelled images, and writing them as insightface's .bin files."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain import keyed
from facetrain.atomic import replacing
from facetrain.data.sampler import permutation
from facetrain.errors import InputError

FOLDS = 10


def write_bin(path: Path, encoded: Sequence[bytes], same: ArrayLike) -> None:
    """Write a pair set as insightface's .bin: a pickle of (list of 2N encoded images, list of N bools), protocol 4.

    Args:
        path: the file; never half there.
        encoded: 2N images; pair i is 2i and 2i + 1.
        same: (N,) bool, whether pair i shows one person.
    """
    flags = [bool(flag) for flag in np.asarray(same)]
    assert len(encoded) == 2 * len(flags)
    with replacing(path) as temporary, temporary.open("wb") as file:
        pickle.dump(([bytes(image) for image in encoded], flags), file, protocol=4)


def draw_pairs(
    labels: NDArray[np.int64], count: int = 6000, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Draw distinct pairs in 10 folds, each half same then half different, as LFW's file order has them.

    People take turns, so that every person appears about equally often as long as their photos suffice. Where there are
    not enough distinct pairs, as many full folds' rows as possible are drawn: look at the length of the result.

    Args:
        labels: (n,) int64, the person of each photo; any integers.
        count: pairs asked for; rounded down to a multiple of 20, at least 20.
        seed: the same seed and labels give the same pairs.

    Returns:
        (first (N,) int64, second (N,) int64, same (N,) bool): photo numbers of each pair; N % 20 == 0.

    Raises:
        InputError: fewer than 10 same or 10 different pairs exist.
    """
    labels = np.unique(np.asarray(labels, dtype=np.int64), return_inverse=True)[1].astype(np.int64)
    sizes = np.bincount(labels)
    same_total, different_total = available_pairs(sizes)
    half = min(max(count // (2 * FOLDS), 1), same_total // FOLDS, different_total // FOLDS)
    if half < 1:
        raise InputError(
            f"{sizes.size} people with {labels.size} photos give {same_total} pairs of one person and "
            f"{different_total} of two; at least {FOLDS} of each are needed: hold out more people or photos"
        )
    order = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    same_pairs = order[_same_pairs(sizes, starts, half * FOLDS, seed)]
    different_pairs = order[_different_pairs(sizes, starts, half * FOLDS, seed)]
    pairs = np.concatenate([same_pairs.reshape(FOLDS, half, 2), different_pairs.reshape(FOLDS, half, 2)], axis=1)
    same = np.tile(np.repeat([True, False], half), FOLDS)
    pairs = pairs.reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy(), same


def available_pairs(sizes: NDArray[np.int64]) -> tuple[int, int]:
    """How many distinct (same, different) pairs people with ``sizes`` photos give."""
    photos = int(sizes.sum())
    same = int((sizes * (sizes - 1) // 2).sum())
    return same, photos * (photos - 1) // 2 - same


def _same_pairs(sizes: NDArray[np.int64], starts: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """(count, 2) positions of distinct pairs of one person; each turn takes one more pair of everyone that has one."""
    quota = _fair_shares(sizes * (sizes - 1) // 2, count)
    pair_seed = int(keyed.bits(seed, keyed.text_key("same pair")))
    rounds: list[NDArray[np.int64]] = []
    turn: list[NDArray[np.float64]] = []
    for person in np.flatnonzero(quota):
        n = int(sizes[person])
        chosen = permutation(n * (n - 1) // 2, pair_seed, int(person), np.arange(quota[person]))
        # Pair number k of n photos, counted row by row of the strict upper triangle.
        second = ((1 + np.sqrt(8.0 * chosen + 1)) // 2).astype(np.int64)
        second += (second * (second + 1) // 2 <= chosen).astype(np.int64) - (second * (second - 1) // 2 > chosen)
        first = chosen - second * (second - 1) // 2
        rounds.append(starts[person] + np.stack([first, second], axis=1))
        turn.append(np.arange(len(chosen)) + keyed.uniform(seed, keyed.text_key("same turn"), person, chosen))
    pairs = np.concatenate(rounds)
    # By turn, so that the people are spread over all folds and each fold sees nearly all of them.
    return pairs[np.argsort(np.concatenate(turn), kind="stable")][:count]


def _fair_shares(capacity: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Share ``count`` out one by one over people that can take ``capacity`` each, as evenly as they can."""
    assert int(capacity.sum()) >= count
    low, high = 0, int(capacity.max())
    while low < high:
        level = (low + high) // 2
        if int(np.minimum(capacity, level).sum()) >= count:
            high = level
        else:
            low = level + 1
    return np.minimum(capacity, low)


def _different_pairs(sizes: NDArray[np.int64], starts: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """(count, 2) positions of distinct pairs of two people: draw two people, then a photo of each."""
    people = sizes.size
    photos = int(sizes.sum())
    if available_pairs(sizes)[1] <= 4 * count:
        return _all_different_pairs(sizes, starts, count, seed)
    found = np.empty((0, 2), dtype=np.int64)
    attempt = 0
    while len(found) < count:
        number = np.arange(attempt * 2 * count, (attempt + 1) * 2 * count, dtype=np.int64)
        u = [keyed.uniform(seed, keyed.text_key("different"), k, number) for k in range(4)]
        one = (u[0] * people).astype(np.int64)
        two = (one + 1 + (u[1] * (people - 1)).astype(np.int64)) % people
        first = starts[one] + (u[2] * sizes[one]).astype(np.int64)
        second = starts[two] + (u[3] * sizes[two]).astype(np.int64)
        found = np.concatenate([found, np.stack([first, second], axis=1)])
        key = found.min(axis=1) * photos + found.max(axis=1)
        found = found[np.sort(np.unique(key, return_index=True)[1])]
        attempt += 1
    return found[:count]


def _all_different_pairs(
    sizes: NDArray[np.int64], starts: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """The same by listing every pair, where most of them are wanted; memory is that of the pairs that exist."""
    ends = starts + sizes
    partners = np.repeat(sizes.sum() - ends, sizes)  # each photo pairs with all photos of later people
    first = np.repeat(np.arange(partners.size), partners)
    before = np.repeat(np.cumsum(partners) - partners, partners)
    second = np.repeat(np.repeat(ends, sizes), partners) + np.arange(first.size) - before
    chosen = permutation(first.size, int(keyed.bits(seed, keyed.text_key("different listed"))), 0, np.arange(count))
    return np.stack([first[chosen], second[chosen]], axis=1).astype(np.int64)
