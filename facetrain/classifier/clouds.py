"""The noise of feature clouds: which angle each logit of a row is turned by, the same on every rank.

A draw belongs to (seed, step, global row, global class). It is read from one table of normal numbers that every rank
has: a row gets a keyed place in the table, and its classes follow from there. So a chunk of classes is a piece of the
table, which only has to be copied, whoever owns the classes and however they are cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from facetrain.keyed import bits, text_key, uniform

TABLE = 1 << 20
"""Length of the table; beyond so many classes the draws of a row repeat."""

_NOISE = text_key("cloud noise")


def normal_table(seed: int, dtype: torch.dtype, device: torch.device, longest: int) -> Tensor:
    """(TABLE + longest,) standard normal numbers, the last ``longest`` being the first once more.

    Drawn by Box and Muller's transform from keyed uniform numbers, so they do not depend on the version of torch.
    """
    first, second = (uniform(seed, _NOISE, part, np.arange(TABLE // 2)) for part in (0, 1))
    radius, angle = np.sqrt(-2 * np.log1p(-first)), 2 * np.pi * second
    numbers = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return torch.from_numpy(np.resize(numbers, TABLE + longest)).to(device, dtype)


def places(seed: int, step: int, rows: ArrayLike) -> NDArray[np.int64]:
    """Where in the table the draws of global rows begin, for class 0."""
    return (bits(seed, _NOISE, 2, step, rows) % np.uint64(TABLE)).astype(np.int64)


@dataclass(frozen=True)
class Cloud:
    """The feature clouds of a micro-batch.

    Attributes:
        rows: (m,) int64 on the host: the rows of the micro-batch that have a cloud.
        std: (m,) standard deviations of their angles in radians, on the device.
        start: (m,) int64 on the device: where in ``table`` each row's draws begin.
        table: of :func:`normal_table`.
        per_class: a draw for every class; False: a row's first one for all classes.
    """

    rows: NDArray[np.int64]
    std: Tensor
    start: Tensor
    table: Tensor
    per_class: bool

    def alpha(self, rows: slice, classes: range | Tensor) -> Tensor:
        """Angles within -pi..pi of some of the m rows and of global classes, in radians: (n, len(classes)), or (n, 1).

        Args:
            rows: which of the m.
            classes: consecutive classes, or (S,) int64 any of them.
        """
        std, start = self.std[rows, None], self.start[rows]
        if not self.per_class:
            drawn = self.table[start][:, None]
        elif isinstance(classes, range) and len(classes) <= len(self.table) - TABLE:
            drawn = self.table.unfold(0, len(classes), 1)[(start + classes.start) % TABLE]
        else:
            if isinstance(classes, range):
                classes = torch.arange(classes.start, classes.stop, device=start.device)
            drawn = self.table[(start[:, None] + classes) % TABLE]
        return (drawn * std).clamp_(-math.pi, math.pi)

    def target_alpha(self, labels: Tensor) -> Tensor:
        """Angles of each row's own class, (m,), from the m rows' global labels (m,) on the device."""
        place = (self.start + labels) % TABLE if self.per_class else self.start
        return (self.table[place] * self.std).clamp(-math.pi, math.pi)

    @cached_property
    def largest(self) -> float:
        """No angle is larger than this; asking waits for the device."""
        if not len(self.rows):
            return 0.0
        return min(math.pi, float(self.std.max()) * float(self.table.abs().max()))
