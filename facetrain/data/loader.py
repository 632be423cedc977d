"""Batches for one rank: worker processes decode, augment and hand over uint8; the order is a pure function of the step.

Every rank knows which images and labels make up every micro-batch without asking the others, so labels need no
communication, and a resume starts at any step without reading what came before.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from facetrain import processes
from facetrain.config import AugmentConfig, DataConfig
from facetrain.data.augment import augment
from facetrain.data.damage import BatchDecoder, Damaged
from facetrain.data.dataset import Images
from facetrain.data.foreign_readers import DaliDecoder
from facetrain.data.sampler import batch_indices, steps_per_epoch
from facetrain.errors import InputError, LostRankError, RunError
from facetrain.partition import rows


@dataclass(frozen=True)
class Batch:
    """One micro-batch as one rank sees it.

    Attributes:
        images: (B, H, W, 3) uint8 RGB, this rank's rows only; B may be 0.
        labels: (G,) int64, the classes of the whole micro-batch over all ranks; :func:`facetrain.partition.rows` says
            which of them are those of ``images``.
        damaged: images that this rank could not read and what stands in their rows instead, see
            :mod:`facetrain.data.damage`; for :class:`facetrain.data.damage_log.DamageLog`.
    """

    images: torch.Tensor
    labels: NDArray[np.int64]
    damaged: tuple[Damaged, ...] = ()


@dataclass(frozen=True)
class _Plan:
    """All that decides which pixels a micro-batch holds."""

    images: Images
    augment: AugmentConfig
    reader: str
    input_size: int
    batch_size: int
    accumulation: int
    seed: int
    rank: int
    world_size: int
    max_damaged: int

    def indices(self, number: int) -> tuple[int, NDArray[np.int64]]:
        """(epoch, (G,) image numbers) of micro-batch ``number``, counted from 0 over all updates."""
        step, part = divmod(number, self.accumulation)
        epoch, indices = batch_indices(len(self.images), self.batch_size, self.seed, step)
        return epoch, indices[rows(self.batch_size, self.accumulation, part)]


class _Failure(str):
    """An InputError's message on its way from a worker: raised there, it would arrive wrapped in a traceback."""


_Item: TypeAlias = tuple[torch.Tensor, NDArray[np.int64], Sequence[Damaged]] | _Failure


class _MicroBatches(Dataset[object]):
    """Micro-batch number -> (own images, all labels, damaged images that were met)."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self._decoder: BatchDecoder | None = None

    def __getitem__(self, number: int) -> _Item:
        plan = self.plan
        if self._decoder is None:
            self._decoder = BatchDecoder(plan.images, plan.seed, plan.max_damaged, self._dali())
        epoch, indices = plan.indices(number)
        own = indices[rows(len(indices), plan.world_size, plan.rank)]
        pixels = torch.empty((len(own), plan.input_size, plan.input_size, 3), dtype=torch.uint8)
        if torch.utils.data.get_worker_info() is not None:
            pixels.share_memory_()  # decoded where the trainer will read it
        view = pixels.numpy()
        try:
            damaged = self._decoder.decode(own, view)
        except InputError as error:
            return _Failure(error)
        augment(view, plan.augment, plan.seed, epoch, own)
        return pixels, plan.images.labels[indices], damaged

    def _dali(self) -> DaliDecoder | None:
        if self.plan.reader != "dali":
            return None
        # A forked worker cannot use the GPU of its parent.
        on_gpu = torch.utils.data.get_worker_info() is None and torch.cuda.is_available()
        return DaliDecoder(self.plan.input_size, torch.cuda.current_device() if on_gpu else None, threads=1)


class Loader:
    """The training images of one rank, by update."""

    def __init__(
        self,
        images: Images,
        config: DataConfig,
        input_size: int,
        batch_size: int,
        accumulation: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        """Plan the batches; no worker starts yet.

        Args:
            images: the data, opened by :func:`facetrain.data.dataset.open_images` for ``config.reader``.
            config: workers, prefetch, reader and augmentation.
            input_size: pixels a side; images of another size become it as ``images`` says.
            batch_size: images per update over all ranks and micro-batches.
            accumulation: micro-batches per update; divides ``batch_size``.
            seed: of the order and the augmentation.
            rank: which share of each micro-batch this process decodes.
            world_size: number of shares.
            pin_memory: hand over page-locked tensors, for asynchronous copies to a GPU.

        Raises:
            InputError: fewer images than a batch.
        """
        assert batch_size % accumulation == 0
        self.steps_per_epoch = steps_per_epoch(len(images), batch_size)
        self.config = config
        self.pin_memory = pin_memory
        self.plan = _Plan(
            images=images,
            augment=config.augment,
            reader=config.reader,
            input_size=input_size,
            batch_size=batch_size,
            accumulation=accumulation,
            seed=seed,
            rank=rank,
            world_size=world_size,
            max_damaged=config.max_damaged,
        )

    def iterate(self, start_step: int, stop_step: int) -> Iterator[list[Batch]]:
        """Updates ``start_step`` up to, not including, ``stop_step``; the workers live as long as the iterator.

        Yields:
            the update's micro-batches, ``accumulation`` of them.

        Raises:
            InputError: the data were changed, or a worker died. An image that cannot be read is no error here: it is
                among its batch's ``damaged``.
        """
        plan = self.plan
        numbers = range(start_step * plan.accumulation, stop_step * plan.accumulation)
        group: list[Batch] = []
        for item in self._items(numbers):
            if isinstance(item, _Failure):
                raise InputError(str(item))
            pixels, labels, damaged = item
            group.append(Batch(pixels, labels, tuple(damaged)))
            if len(group) == plan.accumulation:
                yield group
                group = []

    def _items(self, numbers: range) -> Iterator[_Item]:
        workers = min(self.config.workers, len(numbers))
        loader = DataLoader(
            _MicroBatches(self.plan),
            batch_size=None,  # an item is a whole micro-batch
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=self.config.prefetch if workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=partial(_start_worker, os.getpid()),
            pin_memory=self.pin_memory,
            # A forked worker shares the index of the records with its parent, page by page.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )
        try:
            yield from loader
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # All but the first come from the sockets through which tensors are handed over.
            raise worker_died(error) or error from None


def worker_died(error: Exception) -> LostRankError | None:
    """What to raise instead of the errors that a dead worker causes; None: ``error`` is something else.

    torch raises its RuntimeError from a handler of SIGCHLD, wherever the main thread then is, and again for the next
    worker that ends. From here on that handler is off, so that the message can be told.
    """
    if isinstance(error, RunError):
        return None
    if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
        return None
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return LostRankError(
        f"a decoding worker died: {' '.join(str(error).split())[:200]}; mostly memory or /dev/shm ran out: "
        "lower data.workers, data.prefetch or train.batch_size"
    )


def _as_it_is(item: object) -> object:
    return item


def _start_worker(trainer: int, worker: int) -> None:
    """One thread per worker, and no death by signals that are meant for the trainer, which saves first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # A copy of a killed trainer holds its connections open, and the other ranks would wait for it.
    processes.follow(trainer, signal.SIGKILL)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
