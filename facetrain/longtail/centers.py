"""Moving averages of each class's embeddings: LEAP's class centres (Liu et al., CVPR 2020, Eq. 3 and 4)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facetrain.distributed import to_device


class Centers:
    """The centres of this rank's classes.

    Attributes:
        value: (K, D) the centres, not normalised; zeros for a class that was never seen.
        seen: (K,) bool on the host.
    """

    def __init__(self, classes: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.value = torch.zeros((classes, size), dtype=dtype, device=device)
        self.seen = np.zeros(classes, np.bool_)

    def update(self, rows: Tensor, classes: NDArray[np.int64], counts: NDArray[np.int64], gamma: float) -> None:
        """Move the centres of some classes towards the means of their new rows: Eq. 4.

        ``c <- (1 - gamma) * mean + gamma * c``: as printed, gamma weighs the previous centre. The first time a class is
        seen its centre is the mean.

        Args:
            rows: (n, D) L2-normalised embeddings, those of one class after another.
            classes: (u,) distinct rows of ``value``.
            counts: (u,) rows of each, n in all.
            gamma: weight of the previous centre, 0..1.
        """
        device = self.value.device
        # Without unsafe the lengths, which come from numpy.unique, are checked, for which a GPU would be waited for.
        means = torch.segment_reduce(rows, "mean", lengths=to_device(counts, device), axis=0, unsafe=True)  # (u, D)
        previous_weight = to_device(np.where(self.seen[classes], gamma, 0.0), device).to(rows.dtype)[:, None]
        index = to_device(classes, device)
        self.value[index] = means + previous_weight * (self.value[index] - means)
        self.seen[classes] = True

    def angles(self, rows: Tensor, classes: NDArray[np.int64]) -> Tensor:
        """Angles between embeddings and the centres of their classes in radians, (n,) float64: Eq. 3.

        Args:
            rows: (n, D) L2-normalised.
            classes: (n,) rows of ``value``.
        """
        centres = self.value[to_device(classes, self.value.device)].double()  # float32 cosines near 1 have no angle
        cosines = torch.linalg.vecdot(rows.double(), centres) / torch.linalg.vector_norm(centres, dim=1)
        return torch.arccos(cosines.clamp(-1, 1))
