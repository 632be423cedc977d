"""LEAP: feature clouds for classes with few images, their spread learned from those with many.

Source: Liu et al., "Deep Representation Learning on Long-tailed Data: A Learnable Embedding Augmentation Perspective",
CVPR 2020. Each rank keeps centres and angles of its own classes, updated every few steps from the gathered embeddings;
one small sum over ranks then tells every rank the variances that changed. So all ranks know the spread of every class,
a few bytes each, and give a row the same cloud without asking its owner.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from facetrain.checkpoints.piece import Piece
from facetrain.classifier.clouds import Cloud, normal_table, places
from facetrain.config_loss import LeapConfig
from facetrain.distributed import World, to_device
from facetrain.longtail.angles import AngleMemory
from facetrain.longtail.centers import Centers

_NO_LABELS = np.empty(0, np.int64)


class Leap:
    """Statistics of the classes, and the clouds that follow from them; does nothing where the recipe has it off.

    Attributes:
        variance: (C,) float64, every class's angular variance in radians squared; NaN before a class has two angles.
        target: scalar float64 tensor, the variance that clouds bring a class up to (Eq. 6 or 9); NaN before it exists.
        pending: (n, D) normalised embeddings of own classes since the last synchronisation, oldest first.
        pending_labels: (n,) their global classes.
    """

    def __init__(
        self,
        config: LeapConfig,
        class_counts: NDArray[np.int64],
        embedding_size: int,
        world: World,
        seed: int,
        start_step: float,
        longest_chunk: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """An empty memory.

        Args:
            config: the recipe's section.
            class_counts: (C,) training images of each class, K_i.
            embedding_size: D.
            world: the ranks.
            seed: of the clouds' noise.
            start_step: the first step with clouds.
            longest_chunk: classes whose noise is asked for at once.
            dtype: of the centres.
        """
        self.config, self.world, self.seed, self.start_step = config, world, seed, start_step
        self.active = config.active
        self.classes = world.rows_of(len(class_counts))
        if not self.active:
            return
        device = world.device
        own = class_counts[self.classes.start : self.classes.stop]
        self.centers = Centers(len(own), embedding_size, dtype, device)
        self.angles = AngleMemory(own * config.memory_factor, device)
        self._slots = np.concatenate([[0], np.cumsum(class_counts * config.memory_factor)])  # (C + 1,) of all ranks
        threshold = np.inf if config.head_threshold is None else config.head_threshold
        self._head = class_counts > threshold  # (C,) on the host
        self._counts = to_device(class_counts.astype(np.float64), device)
        self._is_head = to_device(self._head, device)
        self.variance = torch.full((len(class_counts),), torch.nan, dtype=torch.float64, device=device)
        self.target = torch.full((), torch.nan, dtype=torch.float64, device=device)
        self.pending = torch.empty((0, embedding_size), dtype=dtype, device=device)
        self.pending_labels = self._touched = _NO_LABELS
        self._table = normal_table(seed, dtype, device, longest_chunk) if config.variant != "off" else None
        self.follow()
        self._rows = 0  # since the last summary
        self._given = torch.zeros(2, dtype=torch.float64, device=device)  # those with a cloud, sum of their std

    def cloud(self, labels: NDArray[np.int64], step: int, first_row: int) -> Cloud | None:
        """The clouds of a micro-batch, the same on every rank; None where there are none yet.

        Args:
            labels: (G,) global classes of the micro-batch.
            step: number of the update.
            first_row: row of the update that the micro-batch begins with.
        """
        if not self.active or self._table is None or step < self.start_step:
            return None
        std = self._std(labels)  # (G,)
        rows = np.arange(len(labels))
        if self.world.device.type == "cpu":  # asking a GPU which rows have none would mean to wait for it
            rows = np.flatnonzero(std.numpy())
        elif self.config.variant == "vanilla" and self.config.cloud_for == "tail":
            rows = np.flatnonzero(~self._head[labels])
        self._rows += len(labels)
        self._given += torch.stack([std.sign(), std]).sum(dim=1)
        return Cloud(
            rows=rows,
            std=std[to_device(rows, self.world.device)].to(self._table.dtype),
            start=to_device(places(self.seed, step, first_row + rows), self.world.device),
            table=self._table,
            per_class=self.config.cloud_noise == "per_class",
        )

    def _std(self, labels: NDArray[np.int64]) -> Tensor:
        """(G,) standard deviations of the rows' cloud angles, 0 for those without a cloud."""
        if self.config.cloud_for == "everyone":
            return self._spread.expand(len(labels))
        return self._spread[to_device(labels, self.world.device)]

    def _lacking(self) -> Tensor:
        """(C,) variance of each class's cloud: what it lacks to the target (section 3.4), 0 for others."""
        if self.config.fixed_sigma is not None:
            lacking = torch.full_like(self.variance, self.config.fixed_sigma**2)
        else:
            lacking = (self.target - self.variance).nan_to_num(nan=0.0).clamp_min(0)
        if self.config.variant == "vanilla":
            lacking = lacking.masked_fill(self._is_head, 0.0)
        return lacking

    def observe(self, embeddings: Tensor, labels: NDArray[np.int64]) -> None:
        """Keep what belongs to own classes of a micro-batch: (G, D) embeddings of all ranks, (G,) global classes."""
        if not self.active:
            return
        own = np.flatnonzero((labels >= self.classes.start) & (labels < self.classes.stop))
        rows = F.normalize(embeddings.detach()[to_device(own, self.world.device)].to(self.pending.dtype))
        self.pending = torch.cat([self.pending, rows])
        self.pending_labels = np.concatenate([self.pending_labels, labels[own]])
        self._touched = np.union1d(self._touched, labels)

    def end_step(self, done: int) -> None:
        """After update number ``done``, counted from 1: every ``sync_interval`` of them the statistics follow."""
        if self.active and done % self.config.sync_interval == 0:
            self._synchronise()

    @torch.no_grad()
    def _synchronise(self) -> None:
        local = self.pending_labels - self.classes.start
        order = np.argsort(local, kind="stable")  # by class, oldest first
        classes, counts = np.unique(local, return_counts=True)
        rows = self.pending[to_device(order, self.world.device)]
        if len(classes):
            self._update(rows, local[order], classes, counts)
        touched, own = self._touched, (self._touched >= self.classes.start) & (self._touched < self.classes.stop)
        changed = torch.zeros(len(touched), dtype=torch.float64, device=self.world.device)
        # A class without a variance yet sends -1: NaN would not survive the sum.
        changed[to_device(np.flatnonzero(own), self.world.device)] = self.angles.variance(
            touched[own] - self.classes.start
        ).nan_to_num(nan=-1.0)
        self.world.sum_(changed)
        self.variance[to_device(touched, self.world.device)] = torch.where(changed < 0, torch.nan, changed)
        self.follow()
        self.pending, self.pending_labels, self._touched = self.pending[:0].clone(), _NO_LABELS, _NO_LABELS

    def _update(
        self, rows: Tensor, of_row: NDArray[np.int64], classes: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> None:
        """Centres and angles of the classes (u,) that were seen, from their rows (n, D), class after class."""
        if self.config.angle_against == "updated":
            self.centers.update(rows, classes, counts, self.config.center_gamma)
            self.angles.record(self.centers.angles(rows, of_row), classes, counts)
            return
        known = self.centers.seen[classes]  # a class seen for the first time has no centre to measure against
        measured = np.flatnonzero(self.centers.seen[of_row])
        angles = self.centers.angles(rows[to_device(measured, rows.device)], of_row[measured])
        self.angles.record(angles, classes[known], counts[known])
        self.centers.update(rows, classes, counts, self.config.center_gamma)

    def follow(self) -> None:
        """After ``variance`` has changed: the clouds' target, and their spread, which every step looks up."""
        if self.config.variant == "vanilla":
            self.target = self._mean_variance(self._is_head.double())  # Eq. 6
        else:
            self.target = self._mean_variance(self._counts - 1)  # Eq. 9
        variance = self._lacking()
        if self.config.cloud_for == "everyone":
            variance = (variance * self._counts).sum() / self._counts.sum()
        self._spread = variance.sqrt()  # (C,), or a scalar for everyone

    def _mean_variance(self, weight: Tensor) -> Tensor:
        """The weighted mean of the variances that there are; NaN where none has weight."""
        valid = ~self.variance.isnan()
        return (self.variance.nan_to_num(nan=0.0) * weight).sum() / (weight * valid).sum()

    def summary(self) -> dict[str, float | None]:
        """Spreads in radians, the share of rows that got a cloud since the last call and their mean sigma."""
        head = self._is_head.double()
        groups = {"sigma_head": head, "sigma_tail": 1 - head, "sigma_overall": self._counts - 1}
        variances = torch.stack([self._mean_variance(weight) for weight in groups.values()])
        *found, clouds, total = torch.cat([variances, self._given]).tolist()  # one wait for the device
        rows, self._rows = self._rows, 0
        self._given.zero_()
        sigmas = {name: None if math.isnan(v) else math.sqrt(v) for name, v in zip(groups, found, strict=True)}
        if self.config.head_threshold is None:
            sigmas |= {"sigma_head": None, "sigma_tail": None}
        return {
            **sigmas,
            "cloud_share": clouds / rows if rows else 0.0,
            "cloud_sigma": total / clouds if clouds else None,
        }

    def histograms(self) -> dict[str, list[int]]:
        """Angles of head and tail classes of all ranks, 180 counts each; all are tail without a head_threshold."""
        own = self._head[self.classes.start : self.classes.stop]
        groups = {"head": own, "tail": ~own} if self.config.head_threshold is not None else {"tail": ~own}
        counts = np.stack([self.angles.histogram(mask) for mask in groups.values()])
        summed = self.world.sum_(to_device(counts, self.world.device)).cpu()
        return dict(zip(groups, summed.tolist(), strict=True))

    def shard(self, pending: int | None = None) -> dict[str, Piece]:
        """What a checkpoint holds of this rank's classes; all ranks together.

        Args:
            pending: rows not yet counted that there are to be filled, of all ranks together, of which each rank reads
                all; None: this rank's own, to be written.
        """
        first, total = self.classes.start, len(self._counts)
        rows = {
            "centre": self.centers.value,
            "seen": torch.from_numpy(self.centers.seen),
            "written": torch.from_numpy(self.angles.written),
        }
        waiting, labels = self.pending, torch.from_numpy(self.pending_labels)
        before, everyones = 0, pending
        if everyones is None:
            counts = self.world.gather_objects(len(waiting))
            before, everyones = sum(counts[: self.world.rank]), sum(counts)
        else:
            waiting, labels = waiting.new_empty((everyones, waiting.shape[1])), labels.new_empty(everyones)
        return {
            **{name: Piece(tensor, first, total) for name, tensor in rows.items()},
            "angle": Piece(self.angles.codes, int(self._slots[first]), int(self._slots[-1])),
            "pending": Piece(waiting, before, everyones),
            "pending_class": Piece(labels, before, everyones),
        }

    def restored(self, pending: Tensor, labels: NDArray[np.int64]) -> None:
        """After the shard was filled, derive what is not saved; all ranks together.

        Args:
            pending: (n, D) kept rows of all ranks, of which this one keeps its own.
            labels: (n,) their global classes: what they touched must be known everywhere.
        """
        self.angles.restore()
        variance = self.angles.variance(np.arange(len(self.classes)))
        self.variance = self.world.gather_rows(variance, len(self._counts))
        self.follow()
        self._touched = np.unique(labels)
        own = np.flatnonzero((labels >= self.classes.start) & (labels < self.classes.stop))
        self.pending = pending.to(self.world.device)[to_device(own, self.world.device)]
        self.pending_labels = labels[own]
