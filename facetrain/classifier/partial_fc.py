"""The sharded classifier: each rank owns the weights of its classes, and a step may use a sample of them.

Source: An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial
FC", CVPR 2022. Two things differ from its public code, on purpose: a negative class takes part with probability
``sample_rate`` by a draw keyed with (seed, step, class), so that any number of ranks uses the same sample; and rows
that take no part cost no gradient memory and are neither decayed nor moved.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from facetrain.classifier.clouds import Cloud
from facetrain.classifier.rows import RowOptimizer
from facetrain.classifier.softmax import SoftmaxSpec, Targets, Turned, sharded_cross_entropy
from facetrain.config import OptimConfig
from facetrain.config_loss import ClassifierConfig
from facetrain.distributed import World, to_device
from facetrain.keyed import bits, text_key, uniform

_INIT_STD = 0.01
_INIT_BLOCK = 1024
_NEGATIVES = text_key("classifier negatives")
_WEIGHTS = text_key("classifier weights")


class PartialFC:
    """This rank's shard of the classifier, its optimiser and the sample of the present step.

    One update is ``begin(labels, step)``, any number of ``loss(...)`` whose gradients add up, then ``step(lr)``.

    Attributes:
        classes: the global classes whose weights are here (K of C).
        weight: (K, D) float, not normalised.
        rows: (S, D) the weights that take part in this step, whose ``grad`` the losses fill; ``weight`` itself without
            sampling.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        config: ClassifierConfig,
        optim: OptimConfig,
        world: World,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.num_classes, self.config, self.world, self.seed = num_classes, config, world, seed
        self.classes = world.rows_of(num_classes)
        self.weight = initial_weights(self.classes, embedding_size, seed, dtype).to(world.device).requires_grad_()
        self.optimizer = RowOptimizer(self.weight, optim)
        self.spec = SoftmaxSpec(config.margin, config.chunk, config.keep_logits, world)
        self.rows: Tensor = self.weight
        self._sample: NDArray[np.int64] | None = None  # local rows that take part, ascending; None: all
        self._indices: Tensor | None = None  # the same on the device

    def begin(self, labels: NDArray[np.int64], step: int) -> None:
        """Choose the classes of this update: those of ``labels`` and a sample of the others.

        Args:
            labels: int64, any shape: the labels of all images of the update over all ranks and micro-batches.
            step: number of the update; the sample is keyed by it.
        """
        if self.config.sample_rate == 1:
            self.rows = self.weight
            self.rows.grad = None
            return
        self._sample = sample_classes(self.classes, labels, self.config.sample_rate, self.seed, step)
        self._indices = to_device(self._sample, self.world.device)
        self.rows = self.weight.detach()[self._indices].requires_grad_()

    def loss(self, embeddings: Tensor, labels: NDArray[np.int64], cloud: Cloud | None = None) -> Tensor:
        """Mean loss of one micro-batch, the same scalar (float64) on every rank.

        Args:
            embeddings: (G, D) of all ranks, any scale and any floating type.
            labels: (G,) int64 global classes, on the host.
            cloud: the rows with feature clouds; None: no row has one.
        """
        turned = None
        if cloud is not None:
            order = np.concatenate([cloud.rows, np.setdiff1d(np.arange(len(labels)), cloud.rows)])
            embeddings, labels = embeddings[to_device(order, self.world.device)], labels[order]
            turned = self._turned(cloud, labels)
        columns = np.where(
            (labels >= self.classes.start) & (labels < self.classes.stop), labels - self.classes.start, -1
        )
        if self._sample is not None:
            here = columns >= 0
            columns[here] = np.searchsorted(self._sample, columns[here])
        targets = Targets.of(columns, self.world.device)
        normalised = F.normalize(embeddings.to(self.rows.dtype))
        return sharded_cross_entropy(normalised, self.rows, targets, self.spec, turned)

    def _turned(self, cloud: Cloud, labels: NDArray[np.int64]) -> Turned:
        own = to_device(labels[: len(cloud.rows)], self.world.device)
        targets = torch.zeros(len(labels), dtype=torch.float64, device=self.world.device)
        targets[: len(cloud.rows)] = cloud.target_alpha(own).double()
        classes = self.classes if self._indices is None else self._indices + self.classes.start
        return Turned(cloud, classes, targets)

    def step(self, lr: float) -> None:
        """Update the rows that took part with the gradients in ``rows.grad``."""
        if self.rows.grad is not None:
            self.optimizer.step(self.weight, self._indices, self.rows.detach(), self.rows.grad, lr)
        self.rows.grad = None

    def sharded_state(self) -> dict[str, Tensor]:
        """Tensors with one row per class of this shard: the weights and the optimiser's state."""
        return {"weight": self.weight.detach(), **self.optimizer.state}


def initial_weights(classes: range, embedding_size: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """N(0, 0.01) weights (len(classes), D), each row determined by (seed, class) whatever the shard it lies in."""
    weights = torch.empty((len(classes), embedding_size), dtype=dtype)
    filled = 0
    while filled < len(classes):
        block, offset = divmod(classes.start + filled, _INIT_BLOCK)
        generator = torch.Generator().manual_seed(int(bits(seed, _WEIGHTS, block) >> np.uint64(1)))
        drawn = torch.randn((_INIT_BLOCK, embedding_size), generator=generator)[offset : offset + len(classes) - filled]
        weights[filled : filled + len(drawn)] = drawn * _INIT_STD
        filled += len(drawn)
    return weights


def sample_classes(classes: range, labels: NDArray[np.int64], rate: float, seed: int, step: int) -> NDArray[np.int64]:
    """The shard's local rows that take part in an update, ascending int64.

    Every class of ``labels`` takes part; every other with probability ``rate``, by a draw keyed (seed, step, class).
    """
    taken = uniform(seed, _NEGATIVES, step, np.arange(classes.start, classes.stop, dtype=np.int64)) < rate
    present = labels[(labels >= classes.start) & (labels < classes.stop)]
    taken[present - classes.start] = True
    return np.flatnonzero(taken)
