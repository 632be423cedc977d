"""What a batch meets on one rank: the class weights that take part, each row's own class, the rows with clouds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facetrain.classifier.clouds import Cloud
from facetrain.classifier.margin import turn
from facetrain.distributed import to_device

_TURNED_AT_ONCE = 1 << 16  # logits; on a CPU these and what is computed of them stay in the cache


@dataclass(frozen=True)
class Columns:
    """The S rows of a table of class weights that take part in a loss; its columns of logits.

    Attributes:
        table: (K, D), not normalised.
        rows: (S,) int64 on the device, distinct; None: all K.
    """

    table: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.table if self.rows is None else self.rows)

    def where(self, start: int, stop: int) -> slice | Tensor:
        """The table's rows of columns start..stop-1."""
        return slice(start, stop) if self.rows is None else self.rows[start:stop]


@dataclass(frozen=True)
class Targets:
    """Where the rows of a batch find their own class among this rank's S columns.

    Attributes:
        of_row: (G,) int64 on the device, the column of every row, -1 where the class is another rank's.
        host: the same on the host; None where only kernels will ask.
    """

    of_row: Tensor
    host: NDArray[np.int64] | None

    @classmethod
    def known(cls, columns: NDArray[np.int64], device: torch.device) -> Targets:
        """Targets whose columns (G,) the host knows."""
        return cls(to_device(columns, device), columns)

    @cached_property
    def _by_column(self) -> tuple[NDArray[np.int64], Tensor]:
        """Rows and columns of the targets here, ordered by column: the columns on the host, both on the device."""
        assert self.host is not None
        rows = np.flatnonzero(self.host >= 0)
        rows = rows[np.argsort(self.host[rows], kind="stable")]
        return self.host[rows], to_device(np.stack([rows, self.host[rows]]), self.of_row.device)

    def within(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(rows, columns - start) of the targets whose column lies in start..stop; the host does not wait."""
        columns, both = self._by_column
        first, last = np.searchsorted(columns, [start, stop])
        return both[0, first:last], both[1, first:last] - start


@dataclass(frozen=True)
class Turned:
    """The first rows of a batch, which have a feature cloud, against this rank's S columns.

    Attributes:
        cloud: their clouds; m rows.
        classes: the global classes of the columns.
        targets: (G,) float64, the angles of every row's own class, 0 for the rows without a cloud.
    """

    cloud: Cloud
    classes: range | Tensor
    targets: Tensor

    def turn_(self, cosines: Tensor, start: int, stop: int) -> Tensor:
        """Turn cosines (G, n) of columns start..stop-1, in place; the derivatives of those with clouds, (m, n)."""
        count, on_cpu = len(self.cloud.rows), cosines.device.type == "cpu"
        slopes = cosines.new_empty((count, stop - start))
        step = max(1, _TURNED_AT_ONCE // (stop - start)) if on_cpu else max(1, count)
        for first in range(0, count, step):
            rows = slice(first, min(first + step, count))
            alpha = self.cloud.alpha(rows, self.classes[start:stop])
            if on_cpu:  # elsewhere the answer to a question would have to be waited for
                low, high = torch.aminmax(cosines[rows])
                clips = max(-float(low), float(high)) >= self._free_of_clips
                cosines[rows], slopes[rows] = turn(cosines[rows], alpha, clips)
            else:
                cosines[rows], slopes[rows] = turn(cosines[rows], alpha)
        return slopes

    @cached_property
    def _free_of_clips(self) -> float:
        """Cosines below this in size belong to angles that no cloud turns out of 0..pi."""
        return math.cos(self.cloud.largest) if self.cloud.largest < math.pi / 2 else 0.0
