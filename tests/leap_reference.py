"""LEAP (Liu et al., CVPR 2020) as its paper writes it: one process, float64, loops, autograd. For comparison only.

Equation numbers are the paper's. What it leaves open is decided here as follows:

* Eq. 4's mean is over L2-normalised embeddings, gamma weighs the PREVIOUS centre, the centre itself keeps its length,
  and a class's first mean is its first centre. The rows of all steps since the last synchronisation are one mini-batch.
* Eq. 3's angle is to the centre before that update (``previous``: a row of a new class has none) or after it
  (``updated``).
* Eq. 5's memory forgets its oldest angle; an angle is kept as one of 65536 codes from 0 to pi.
* The variance is the unbiased one, from two angles on, and Eq. 6 and 9 leave out the classes that have none.
* Eq. 7 and 8's clip to 0..pi goes for theta + alpha. Above pi - m the target is not clipped, which would end its
  gradient, but continues downwards as without LEAP (:func:`dense.target_value`).
"""

import math

import numpy as np
import torch
from dense import target_value
from torch import Tensor

from facetrain.config_loss import MarginConfig

LAST_CODE = 65535


def angle_between(a: np.ndarray, b: np.ndarray) -> float:
    """Eq. 3, in radians; rounding may take the cosine beyond -1..1."""
    cosine = (a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))
    return math.acos(min(max(cosine, -1.0), 1.0))


class Reference:
    """Centres, angle memories and variances of all classes, and the clouds that follow from them."""

    def __init__(
        self,
        class_counts: list[int],
        *,
        variant: str,
        head_threshold: int | None,
        center_gamma: float = 0.9,
        angle_against: str = "previous",
        memory_factor: int = 1,
        sync_interval: int = 5,
        quantise: bool = True,
    ) -> None:
        self.class_counts = class_counts
        self.variant = variant
        self.head_threshold = head_threshold
        self.center_gamma = center_gamma
        self.angle_against = angle_against
        self.memory_factor = memory_factor
        self.sync_interval = sync_interval
        self.quantise = quantise
        self.step = 0
        self.kept: list[tuple[np.ndarray, int]] = []
        self.centres: dict[int, np.ndarray] = {}
        self.rings: dict[int, list[float]] = {}
        self.means: dict[int, float] = {}
        self.variances: dict[int, float] = {}

    def observe(self, embeddings: np.ndarray, labels: list[int]) -> None:
        """Keep one micro-batch of the global batch, (G, D), its rows in global order."""
        for embedding, label in zip(np.array(embeddings, dtype=np.float64), labels, strict=True):
            self.kept.append((embedding, int(label)))

    def end_step(self) -> None:
        """Count one training step; every ``sync_interval``-th one updates the classes seen since the last update."""
        self.step += 1
        if self.step % self.sync_interval == 0:
            for label in sorted({label for _, label in self.kept}):
                self._update_class(label, [embedding for embedding, other in self.kept if other == label])
            self.kept = []

    def _update_class(self, label: int, rows: list[np.ndarray]) -> None:
        """Eq. 4, then Eq. 3 for every row in order, then the mean and the variance of the memory (Eq. 5)."""
        mean = sum(row / np.linalg.norm(row) for row in rows) / len(rows)
        previous = self.centres.get(label)
        if previous is None:
            updated = mean
        else:
            updated = (1 - self.center_gamma) * mean + self.center_gamma * previous
        self.centres[label] = updated

        ring = self.rings.setdefault(label, [])
        centre = {"previous": previous, "updated": updated}[self.angle_against]
        if centre is not None:
            for row in rows:
                ring.append(self._stored(angle_between(row, centre)))
                if len(ring) > self.class_counts[label] * self.memory_factor:
                    del ring[0]

        if len(ring) >= 1:
            self.means[label] = sum(ring) / len(ring)
        if len(ring) >= 2:
            self.variances[label] = sum((x - self.means[label]) ** 2 for x in ring) / (len(ring) - 1)

    def _stored(self, angle: float) -> float:
        """The angle as the memory gives it back."""
        if self.quantise:
            return round(angle / math.pi * LAST_CODE) * math.pi / LAST_CODE
        return angle

    def is_head(self, label: int) -> bool:
        """Vanilla only: more than T images (section 3.4)."""
        assert self.head_threshold is not None
        return self.class_counts[label] > self.head_threshold

    def overall_variance(self) -> float | None:
        """sigma_h^2 of Eq. 6 (vanilla) or sigma^2 of Eq. 9 (full); None where no class contributes."""
        total, weights = 0.0, 0
        for label, variance in self.variances.items():
            if self.variant == "vanilla":
                weight = 1 if self.is_head(label) else 0
            else:
                weight = self.class_counts[label] - 1
            total += weight * variance
            weights += weight
        return total / weights if weights > 0 else None

    def overall_sigma(self) -> float | None:
        """Its square root, in radians."""
        overall = self.overall_variance()
        return None if overall is None else math.sqrt(overall)

    def cloud_std(self, label: int) -> float:
        """Standard deviation of alpha for a row of this class, in radians; 0: no cloud."""
        overall = self.overall_variance()
        if overall is None or label not in self.variances:
            return 0.0
        if self.variant == "vanilla" and self.is_head(label):
            return 0.0
        return math.sqrt(max(overall - self.variances[label], 0.0))


def constant(value: float, cosine: Tensor) -> Tensor:
    """The value, with autograd's gradient 0 (and not none at all) for the cosine."""
    return 0 * cosine + value


def shifted_cosine(cosine: Tensor, alpha: float) -> Tensor:
    """cos(clip(theta + alpha, 0, pi)); where the clip acts, +1 or -1 with a gradient of exactly 0."""
    if alpha == 0:
        return cosine
    angle = torch.arccos(cosine.clamp(-1, 1)) + alpha
    if angle < 0:
        return constant(1.0, cosine)
    if angle > math.pi:
        return constant(-1.0, cosine)
    return torch.cos(angle)


def shifted_target(cosine: Tensor, alpha: float, margin: MarginConfig) -> Tensor:
    """The target's value: Eq. 7's cos(theta + alpha) - m, Eq. 8's cos(theta + alpha + m), and what generalises both.

    t = min(theta + alpha, pi) stands in theta's place. It is not cut at 0 itself: Eq. 8 adds the margin first, and what
    is cut at 0 is m1 * t + m2.
    """
    m1, m2, m3 = margin.parameters
    t = torch.arccos(cosine.clamp(-1, 1)) + alpha
    if t > math.pi:
        t = constant(math.pi, cosine)
    if m1 * t + m2 < 0:
        value = constant(1.0, cosine) - m3
    else:
        value = target_value(t, margin)
    if margin.gradient == "straight_through":
        plain = shifted_cosine(cosine, alpha)
        return plain + (value - plain).detach()
    return value


def leap_loss(
    embeddings: Tensor,
    weights: Tensor,
    labels: list[int],
    margin: MarginConfig,
    alpha: Tensor,
    columns: list[int] | None = None,
) -> Tensor:
    """Eq. 7 and 8: mean cross-entropy over the classes in ``columns`` (default: all).

    Args:
        embeddings: (G, D) float64, any length.
        weights: (C, D) float64, any length.
        labels: G classes, each of them among the columns.
        margin: any margin; its exact gradient, like that of a shifted angle, does not exist at an angle of exactly 0.
        alpha: (G, C) radians, of any size; no gradient goes to it.
        columns: the classes that take part.
    """
    columns = list(range(len(weights))) if columns is None else list(columns)
    total = torch.zeros((), dtype=torch.float64)
    for x, label, shift in zip(embeddings, labels, alpha.tolist(), strict=True):
        cosines = {j: (x / x.norm()) @ (weights[j] / weights[j].norm()) for j in columns}
        own = margin.scale * shifted_target(cosines[label], shift[label], margin)
        others = [margin.scale * shifted_cosine(cosines[j], shift[j]) for j in columns if j != label]
        # As in dense_loss: -log(e^own / sum) in the form that loses nothing for a learnt class.
        total = total + torch.log1p(torch.exp(torch.stack(others) - own).sum())
    return total / len(labels)
