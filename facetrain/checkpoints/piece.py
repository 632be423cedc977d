"""What a rank holds of the training state, as checkpoints see it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """One rank's consecutive rows of something that is spread over the ranks along its first dimension, or all of it.

    Attributes:
        tensor: (rows, ...) those of this rank, none included; written from and filled in place.
        first: number of the first of them in the whole.
        total: rows of the whole; None: every rank holds all of it, and rank 0 writes it.
    """

    tensor: Tensor
    first: int = 0
    total: int | None = None

    @property
    def rows(self) -> range:
        """Which rows of the whole are here; of something that is not spread, 0-dimensional ones included, all."""
        length = len(self.tensor) if self.tensor.dim() else 1
        return range(self.first, self.first + length)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        return tuple(self.tensor.shape) if self.total is None else (self.total, *self.tensor.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return math.prod(self.shape) * self.tensor.element_size()
