"""The largest of any number of values, and pair scores packed with their two people so that they are such values."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

MOST_PEOPLE = 1 << 16
"""People that :func:`packed` can tell apart."""
_SIGN = np.uint32(1 << 31)
_LOW = np.uint64(0xFFFF)


class Largest:
    """The ``count`` largest values of any number, in room for a quarter more and one block."""

    def __init__(self, count: int, block: int, dtype: DTypeLike = np.float32) -> None:
        self.count, self.held = count, 0
        self.floor: np.generic | None = None
        """The least of ``count`` values, once there were as many: no other value that is not above it is kept."""
        self._room = np.empty(count + count // 4 + block if count else 0, dtype)

    def add(self, values: NDArray) -> None:
        """Look through at most a block of values."""
        if not self.count:
            return
        found = values if self.floor is None else values[values > self.floor]
        if self.held + len(found) > len(self._room):
            self._shrink()
        self._room[self.held : self.held + len(found)] = found
        self.held += len(found)

    def _shrink(self) -> None:
        held = self._room[: self.held]
        if self.held > self.count:
            held.partition(self.held - self.count)
            held[: self.count] = held[self.held - self.count :]
            self.held, self.floor = self.count, held[: self.count].min()

    def values(self) -> NDArray:
        """The largest so far, in no order; valid until more are added."""
        self._shrink()
        return self._room[: self.held]


def packed(scores: NDArray[np.float32], first: NDArray, second: NDArray) -> NDArray[np.uint64]:
    """Scores with two people each, (M,): larger for a larger score, of equal scores for larger numbers of people.

    Args:
        scores: (M,) float32, no NaN.
        first: (M,) integers from 0, below ``MOST_PEOPLE``.
        second: (M,) the same.
    """
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 becomes 0
    rising = np.where(bits & _SIGN, ~bits, bits | _SIGN).astype(np.uint64)
    people = first.astype(np.uint64) << np.uint64(16) | second.astype(np.uint64)
    return np.asarray(rising << np.uint64(32) | people)


def unpacked(keys: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """What :func:`packed` was given: scores (M,) and people (M, 2)."""
    rising = (keys >> np.uint64(32)).astype(np.uint32)
    scores = np.where(rising & _SIGN, rising ^ _SIGN, ~rising).view(np.float32)
    people = np.empty((len(keys), 2), np.uint16)
    people[:, 0] = keys >> np.uint64(16) & _LOW
    people[:, 1] = keys & _LOW
    return scores, people
