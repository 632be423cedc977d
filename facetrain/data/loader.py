"""Batches for one rank: worker processes decode, augment and hand over uint8; the order is a pure function of the step.

Every rank knows which images and labels make up every micro-batch without asking the others, so labels need no
communication, and a resume starts at any step without reading what came before.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from facetrain import processes
from facetrain.config import AugmentConfig, DataConfig
from facetrain.data.ahead import beside_training, made_ahead
from facetrain.data.augment import changes
from facetrain.data.damage import BatchDecoder, Damaged
from facetrain.data.dataset import Images
from facetrain.data.foreign_readers import DaliDecoder
from facetrain.data.ring import Ring, ring
from facetrain.data.sampler import batch_indices, batches_indices, steps_per_epoch
from facetrain.errors import InputError, LostRankError, RunError
from facetrain.partition import rows, split


@dataclass(frozen=True)
class Batch:
    """One micro-batch as one rank sees it.

    Attributes:
        images: (B, H, W, 3) uint8 RGB, this rank's rows only; B may be 0. Of a :class:`Loader` they are valid until the
            next update is asked for, as its buffers are used again: clone what is to stay. Page-locked ones
            (``pin_memory``) are copies, which torch keeps until asynchronous copies to a GPU are done.
        labels: (G,) int64, the classes of the whole micro-batch over all ranks; :func:`facetrain.partition.rows` says
            which of them are those of ``images``.
        damaged: images that this rank could not read and what stands in their rows instead, see
            :mod:`facetrain.data.damage`; for :class:`facetrain.data.damage_log.DamageLog`.
    """

    images: torch.Tensor
    labels: NDArray[np.int64]
    damaged: tuple[Damaged, ...] = ()


_Indices: TypeAlias = tuple[int, NDArray[np.int64]]
"""(epoch, (G,) image numbers)."""
_COMING = 16
"""Micro-batches whose images a worker looks up at once."""


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

    def indices(self, number: int) -> _Indices:
        """Of micro-batch ``number``, counted from 0 over all updates."""
        step = number // self.accumulation
        return self._part(number, *batch_indices(len(self.images), self.batch_size, self.seed, step))

    def several(self, numbers: range) -> dict[int, _Indices]:
        """:meth:`indices` of each of ``numbers``, in less time."""
        steps = sorted({number // self.accumulation for number in numbers})
        found = dict(zip(steps, batches_indices(len(self.images), self.batch_size, self.seed, steps), strict=True))
        return {number: self._part(number, *found[number // self.accumulation]) for number in numbers}

    def _part(self, number: int, epoch: int, indices: NDArray[np.int64]) -> _Indices:
        return epoch, indices[rows(self.batch_size, self.accumulation, number % self.accumulation)]


class _Failure(str):
    """An InputError's message on its way from a worker: raised there, it would arrive wrapped in a traceback."""


class _Decoded(NamedTuple):
    """Word that micro-batch ``number`` lies in its buffer of the ring; all that a worker sends."""

    ring: int
    number: int
    labels: NDArray[np.int64]
    damaged: tuple[Damaged, ...]
    page_locked: torch.Tensor | None = None

    def pin_memory(self) -> _Decoded:
        """With a page-locked copy, after which the buffer is free; torch calls this in a thread of the trainer."""
        return self._replace(page_locked=ring(self.ring).images(self.number).pin_memory())

    def batch(self) -> Batch:
        """What the consumer sees."""
        images = ring(self.ring).images(self.number) if self.page_locked is None else self.page_locked
        return Batch(images, self.labels, self.damaged)


_Item: TypeAlias = _Decoded | _Failure


class _MicroBatches(Dataset[object]):
    """Micro-batch number -> its own images in the ring, and word of it."""

    def __init__(self, plan: _Plan, buffers: Ring) -> None:
        self.plan, self.buffers = plan, buffers
        self._decoder: BatchDecoder | None = None
        self._coming: dict[int, _Indices] = {}

    def __getitem__(self, number: int) -> _Item:
        plan = self.plan
        if self._decoder is None:
            self._decoder = BatchDecoder(plan.images, plan.seed, plan.max_damaged, self._dali())
        epoch, indices = self._indices(number)
        own = indices[rows(len(indices), plan.world_size, plan.rank)]
        pixels = self.buffers.images(number).numpy()
        try:
            damaged = self._decoder.decode(own, pixels, changes(plan.augment, plan.seed, epoch, own))
        except InputError as error:
            return _Failure(error)
        return _Decoded(self.buffers.key, number, plan.images.labels[indices], damaged)

    def _indices(self, number: int) -> _Indices:
        worker = torch.utils.data.get_worker_info()
        if worker is None:
            return self.plan.indices(number)
        if number not in self._coming:  # DataLoader deals the numbers out in turn
            self._coming = self.plan.several(range(number, number + _COMING * worker.num_workers, worker.num_workers))
        return self._coming[number]

    def _dali(self) -> DaliDecoder | None:
        if self.plan.reader != "dali":
            return None
        return DaliDecoder(self.plan.input_size, _decoding_gpu(self.plan.reader), threads=1)


def _decoding_gpu(reader: str) -> int | None:
    """The GPU that decodes, which only the process that trains on it can use; None: the CPU does."""
    if reader != "dali" or torch.utils.data.get_worker_info() is not None or not torch.cuda.is_available():
        return None
    return torch.cuda.current_device()


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
            the update's micro-batches, ``accumulation`` of them; their images are valid until the next are asked for.

        Raises:
            InputError: the data were changed, or there is no memory for the batches. An image that cannot be read is no
                error here: it is among its batch's ``damaged``.
            LostRankError: a worker died.
        """
        plan = self.plan
        numbers = range(start_step * plan.accumulation, stop_step * plan.accumulation)
        group: list[Batch] = []
        with closing(self._items(numbers)) as items:  # some Pythons keep it and its workers while this one is closed
            for item in items:
                if isinstance(item, _Failure):
                    raise InputError(str(item))
                group.append(item.batch())
                if len(group) == plan.accumulation:
                    yield group
                    group = []

    def _items(self, numbers: range) -> Generator[_Item, None, None]:
        workers, gpu = min(self.config.workers, len(numbers)), _decoding_gpu(self.config.reader)
        ahead = workers * self.config.prefetch
        workers = 0 if gpu is not None else workers  # a thread decodes in their place
        buffers = self._ring(ahead)
        loader = DataLoader(
            _MicroBatches(self.plan, buffers),
            batch_size=None,  # an item is a whole micro-batch
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=self.config.prefetch if workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=partial(_start_worker, os.getpid()),
            pin_memory=self.pin_memory,
            # A forked worker shares the buffers, and the index of the records page by page, with its parent.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )
        try:
            if gpu is not None and ahead:
                yield from made_ahead(iter(loader), ahead, partial(beside_training, gpu))
            else:
                yield from loader
        except RuntimeError as error:
            raise worker_died(error) or error from None

    def _ring(self, ahead: int) -> Ring:
        """Buffers enough that no batch is overwritten while it is valid, however fast the workers are.

        Before item n is handed over, DataLoader (as :func:`made_ahead`) has sent out its first ``ahead = workers *
        prefetch`` items and one more for each item handed over, so none beyond n + ahead; without workers n alone. Of
        those handed over before, the consumer may look at the micro-batches of item n's own update, of which the first
        is n - (accumulation - 1) at the earliest. So all items that are being written or may be read are among
        ``ahead + accumulation`` consecutive ones, which lie in as many different buffers. Page-locked copies are made
        before an item is handed over.
        """
        plan = self.plan
        own = split(plan.batch_size // plan.accumulation, plan.world_size, plan.rank)
        return Ring(ahead + plan.accumulation, len(own), plan.input_size)


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
        f"a decoding worker died: {' '.join(str(error).split())[:200]}; mostly memory ran out: "
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
