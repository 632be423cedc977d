"""The sharded classifier: each rank owns the weights of its classes, and a step may use a sample of them.

Source: An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial
FC", CVPR 2022. Two things differ from its public code, on purpose: a negative class takes part with probability
``sample_rate`` by a draw keyed with (seed, step, class), so that any number of ranks uses the same sample; and rows
that take no part cost no gradient memory and are neither decayed nor moved.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from facetrain.classifier.blocks import SoftmaxSpec, Update
from facetrain.classifier.clouds import Cloud
from facetrain.classifier.columns import Columns, Targets, Turned
from facetrain.classifier.rows import RowOptimizer
from facetrain.classifier.sampling import Sample, Sampler
from facetrain.classifier.softmax import sharded_cross_entropy
from facetrain.config import OptimConfig
from facetrain.config_loss import ClassifierConfig
from facetrain.distributed import World, to_device
from facetrain.keyed import bits, text_key

_INIT_STD = 0.01
_INIT_BLOCK = 1024
# Columns and logits that a block has at most where the recipe does not say: a CPU's block stays in its cache, a GPU's
# is worth the start of its kernels. Columns are a multiple of the last number, for products of odd sizes are slow.
_COLUMNS, _LOGITS, _STEP = {"cpu": 4096, "cuda": 1 << 17}, {"cpu": 1 << 21, "cuda": 1 << 26}, 1024
_WEIGHTS = text_key("classifier weights")


class PartialFC:
    """This rank's shard of the classifier, its optimiser and the sample of the present step.

    One update is ``begin(labels, step)``, any number of ``loss(...)`` whose gradients add up in ``rows.grad``, then
    ``step(lr)``. Or it is ``begin(labels, step, lr)`` and one ``loss(...)``, whose backward pass updates the weights as
    it goes, so that there never is a gradient for all of them; ``step(lr)`` then has nothing left to do.

    Attributes:
        classes: the global classes whose weights are here (K of C).
        weight: (K, D) float, not normalised.
        rows: (S, D) the weights that take part in this step, whose ``grad`` the losses fill; ``weight`` itself without
            sampling, and where the backward pass is the update.
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
        self.weight = initial_weights(self.classes, embedding_size, seed, dtype, world.device).requires_grad_()
        self.optimizer = RowOptimizer(self.weight, optim)
        chunk = _COLUMNS[world.device.type] if config.chunk is None else config.chunk
        self.spec = SoftmaxSpec(config.margin, chunk, config.keep_gb * 1e9, world, config.precision)
        self.rows: Tensor = self.weight
        self._sampler = Sampler(self.classes, config.sample_rate, seed, world.device, dtype)
        self._sample: Sample | None = None  # None: all rows take part
        self._update: Update | None = None

    def begin(self, labels: NDArray[np.int64], step: int, lr: float | None = None) -> None:
        """Choose the classes of this update: those of ``labels`` and a sample of the others.

        Args:
            labels: int64, any shape: the labels of all images of the update over all ranks and micro-batches.
            step: number of the update; the sample is keyed by it.
            lr: the backward pass of this update's only loss is to update the weights, with this learning rate; None:
                their gradients are to be gathered.
        """
        self._update = None if lr is None else Update(self.optimizer, lr)
        self.rows = self.weight
        self.rows.grad = None
        if self.config.sample_rate == 1:
            return
        self._sample = self._sampler.sample(labels, step)
        if lr is None:
            self.rows = self.weight.detach()[self._sample.rows].requires_grad_()

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
            embeddings, labels = embeddings.index_select(0, to_device(order, self.world.device)), labels[order]
            turned = self._turned(cloud, labels)
        own = (labels >= self.classes.start) & (labels < self.classes.stop)
        local = np.where(own, labels - self.classes.start, -1)
        targets = Targets.known(local, self.world.device) if self._sample is None else self._sample.targets(local)
        normalised = F.normalize(embeddings.to(self.rows.dtype))
        weights = self.rows if self._update is None else Columns(self.weight.detach(), self._taking_part)
        return sharded_cross_entropy(normalised, weights, targets, self._spec_for(len(labels)), turned, self._update)

    def _spec_for(self, rows: int) -> SoftmaxSpec:
        """``spec``, with narrower blocks where a batch of so many rows would make theirs too large."""
        if self.config.chunk is not None:
            return self.spec
        widest = _LOGITS[self.world.device.type] // rows // _STEP * _STEP
        return replace(self.spec, chunk=min(self.spec.chunk, max(_STEP, widest)))

    def _turned(self, cloud: Cloud, labels: NDArray[np.int64]) -> Turned:
        own = to_device(labels[: len(cloud.rows)], self.world.device)
        targets = torch.zeros(len(labels), dtype=torch.float64, device=self.world.device)
        targets[: len(cloud.rows)] = cloud.target_alpha(own).double()
        classes = self.classes if self._sample is None else self._sample.rows + self.classes.start
        return Turned(cloud, classes, targets)

    @property
    def _taking_part(self) -> Tensor | None:
        return None if self._sample is None else self._sample.rows

    def step(self, lr: float) -> None:
        """Update the rows that took part with the gradients in ``rows.grad``; nothing where there are none."""
        if self.rows.grad is not None:
            where = slice(None) if self._sample is None else self._sample.rows
            with torch.no_grad():
                self.optimizer.step(self.weight, where, self.rows.detach(), self.rows.grad, lr)
        self.rows.grad = None

    def sharded_state(self) -> dict[str, Tensor]:
        """Tensors with one row per class of this shard: the weights and the optimiser's state."""
        return {"weight": self.weight.detach(), **self.optimizer.state}


def initial_weights(
    classes: range,
    embedding_size: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """N(0, 0.01) weights (len(classes), D), each row determined by (seed, class) whatever the shard it lies in."""
    weights = torch.empty((len(classes), embedding_size), dtype=dtype, device=device)

    def fill(block: int) -> None:
        first, last = max(block * _INIT_BLOCK, classes.start), min((block + 1) * _INIT_BLOCK, classes.stop)
        generator = torch.Generator().manual_seed(int(bits(seed, _WEIGHTS, block) >> np.uint64(1)))
        drawn = torch.randn((_INIT_BLOCK, embedding_size), generator=generator).mul_(_INIT_STD)
        offset = block * _INIT_BLOCK
        weights[first - classes.start : last - classes.start] = drawn[first - offset : last - offset]

    blocks = range(classes.start // _INIT_BLOCK, -(-classes.stop // _INIT_BLOCK) if len(classes) else 0)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        list(threads.map(fill, blocks))
    return weights
