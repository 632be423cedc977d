"""The last angles of each class to its centre, and their variance: LEAP's angle memories (CVPR 2020, Eq. 5).

Memories are ragged, ``K_i * P`` angles of class i, one class after another in one array. Angles are kept as codes of
pi / 65535 (4.8e-5 radians), 16 bits each, with integer sums of code and squared code per class, so that the
variance is exact whatever the order of arrival, and equal to the last bit after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facetrain.distributed import to_device

UNIT = math.pi / 65535
"""Radians of one code."""
BINS = 180
"""Of a histogram: degrees."""

_OFFSET = 1 << 15  # torch indexes signed 16-bit integers only
_CLASSES_AT_ONCE = 1 << 16


class AngleMemory:
    """Rings of angles of this rank's classes, the oldest overwritten first.

    Attributes:
        starts: (K + 1,) int64 on the host: where each class's slots begin.
        codes: (total,) int16: the angles, as codes less 32768.
        written: (K,) int64 on the host: angles ever written of each class.
    """

    def __init__(self, capacity: NDArray[np.int64], device: torch.device) -> None:
        """Empty rings; ``capacity`` (K,) is the number of slots of each class."""
        self.starts = np.concatenate([[0], np.cumsum(capacity)]).astype(np.int64)
        self.codes = torch.zeros(int(self.starts[-1]), dtype=torch.int16, device=device)
        self.written = np.zeros(len(capacity), np.int64)
        self._sum = torch.zeros(len(capacity), dtype=torch.int64, device=device)
        self._squares = torch.zeros_like(self._sum)

    @property
    def capacity(self) -> NDArray[np.int64]:
        """(K,) slots of each class."""
        return np.diff(self.starts)

    def record(self, angles: Tensor, classes: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Add angles to the rings of some classes.

        Args:
            angles: (n,) radians in 0..pi, those of one class after another, oldest first.
            classes: (u,) distinct classes of this rank, as rows.
            counts: (u,) angles of each, n in all.
        """
        ends = np.cumsum(counts)
        position = np.arange(len(angles)) - np.repeat(ends - counts, counts)  # of each angle among its class's new ones
        of_class = np.repeat(classes, counts)
        capacity = self.capacity[of_class]
        kept = np.flatnonzero(position >= np.repeat(counts, counts) - capacity)  # of too many the last
        of_class, capacity = of_class[kept], capacity[kept]
        slot = (self.written[of_class] + position[kept]) % capacity
        replaced = slot < np.minimum(self.written[of_class], capacity)
        device = self.codes.device
        where = to_device(self.starts[of_class] + slot, device)
        new = torch.round(angles[to_device(kept, device)] / UNIT).long()
        old = (self.codes[where].long() + _OFFSET) * to_device(replaced.astype(np.int64), device)
        index = to_device(of_class, device)
        self._sum.index_add_(0, index, new - old)
        self._squares.index_add_(0, index, new.square() - old.square())
        self.codes[where] = (new - _OFFSET).to(torch.int16)
        self.written[classes] += counts

    def variance(self, classes: NDArray[np.int64]) -> Tensor:
        """Unbiased variance of the angles of some classes, radians squared, (u,) float64; NaN below two angles."""
        device = self.codes.device
        count = to_device(np.minimum(self.written, self.capacity)[classes].astype(np.float64), device)
        index = to_device(classes, device)
        total, squares = self._sum[index].double(), self._squares[index].double()
        variance = ((squares - total * (total / count)) / (count - 1)).clamp_min(0) * UNIT**2
        return torch.where(count >= 2, variance, torch.nan)

    def histogram(self, classes: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many angles of the chosen classes, a mask (K,), lie in each degree of 0..180; waits for the device."""
        counts = torch.zeros(BINS, dtype=torch.int64, device=self.codes.device)
        for _, codes in self._filled(classes):
            counts += torch.bincount((codes * BINS).div(1 << 16, rounding_mode="floor"), minlength=BINS)
        return counts.cpu().numpy()

    def restore(self) -> None:
        """Compute the sums anew, after ``codes`` and ``written`` were filled from a checkpoint."""
        self._sum.zero_()
        self._squares.zero_()
        for owner, codes in self._filled(np.ones(len(self.written), np.bool_)):
            self._sum.index_add_(0, owner, codes)
            self._squares.index_add_(0, owner, codes.square())

    def _filled(self, classes: NDArray[np.bool_]) -> Iterator[tuple[Tensor, Tensor]]:
        """The angles there are of the chosen classes, in parts: (class, code of 0..65535), both (n,) int64."""
        filled = np.where(classes, np.minimum(self.written, self.capacity), 0)
        for first in range(0, len(filled), _CLASSES_AT_ONCE):
            part = filled[first : first + _CLASSES_AT_ONCE]
            owner = np.repeat(np.arange(first, first + len(part)), part)
            slot = np.arange(len(owner)) - np.repeat(np.cumsum(part) - part, part)
            codes = self.codes[to_device(self.starts[owner] + slot, self.codes.device)]
            yield to_device(owner, self.codes.device), codes.long() + _OFFSET
