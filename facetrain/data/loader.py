"""Batches for one rank: worker processes decode, augment and hand over uint8; the order is a pure function of the step.

Every rank knows which images and labels make up every micro-batch without asking the others, so labels need no
communication, and a resume starts at any step without reading what came before.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from facetrain.config import AugmentConfig, DataConfig
from facetrain.data.augment import augment
from facetrain.data.dataset import Images, decode_batch
from facetrain.data.foreign_readers import DaliDecoder
from facetrain.data.sampler import batch_indices, steps_per_epoch
from facetrain.errors import InputError
from facetrain.partition import rows


@dataclass(frozen=True)
class Batch:
    """One micro-batch as one rank sees it.

    Attributes:
        images: (B, H, W, 3) uint8 RGB, this rank's rows only; B may be 0.
        labels: (G,) int64, the classes of the whole micro-batch over all ranks; :func:`facetrain.partition.rows` says
            which of them are those of ``images``.
    """

    images: torch.Tensor
    labels: NDArray[np.int64]


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

    def indices(self, number: int) -> tuple[int, NDArray[np.int64]]:
        """(epoch, (G,) image numbers) of micro-batch ``number``, counted from 0 over all updates."""
        step, part = divmod(number, self.accumulation)
        epoch, indices = batch_indices(len(self.images), self.batch_size, self.seed, step)
        return epoch, indices[rows(self.batch_size, self.accumulation, part)]


class _Failure(str):
    """An InputError's message on its way from a worker: raised there, it would arrive wrapped in a traceback."""


class _MicroBatches(Dataset[object]):
    """Micro-batch number -> (own images, all labels)."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self._dali: DaliDecoder | None = None

    def __getitem__(self, number: int) -> tuple[torch.Tensor, NDArray[np.int64]] | _Failure:
        plan = self.plan
        epoch, indices = plan.indices(number)
        own = indices[rows(len(indices), plan.world_size, plan.rank)]
        pixels = torch.empty((len(own), plan.input_size, plan.input_size, 3), dtype=torch.uint8)
        if torch.utils.data.get_worker_info() is not None:
            pixels.share_memory_()  # decoded where the trainer will read it
        view = pixels.numpy()
        try:
            if plan.reader == "dali" and len(own):
                pixels.copy_(self._decode_by_dali(own))
            else:
                decode_batch(plan.images, own, view)
        except InputError as error:
            return _Failure(error)
        augment(view, plan.augment, plan.seed, epoch, own)
        return pixels, plan.images.labels[indices]

    def _decode_by_dali(self, own: NDArray[np.int64]) -> torch.Tensor:
        images = self.plan.images
        if self._dali is None:
            # A forked worker cannot use the GPU of its parent.
            on_gpu = torch.utils.data.get_worker_info() is None and torch.cuda.is_available()
            self._dali = DaliDecoder(self.plan.input_size, torch.cuda.current_device() if on_gpu else None, threads=1)
        encoded = [images.encoded(int(i)) for i in own]
        return self._dali.decode(encoded, where=lambda position: images.where(int(own[position])))


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
            images, config.augment, config.reader, input_size, batch_size, accumulation, seed, rank, world_size
        )

    def iterate(self, start_step: int, stop_step: int) -> Iterator[list[Batch]]:
        """Updates ``start_step`` up to, not including, ``stop_step``; the workers live as long as the iterator.

        Yields:
            the update's micro-batches, ``accumulation`` of them.

        Raises:
            InputError: an image cannot be read or decoded (says which), or a worker died.
        """
        plan = self.plan
        numbers = range(start_step * plan.accumulation, stop_step * plan.accumulation)
        group: list[Batch] = []
        for item in self._items(numbers):
            if isinstance(item, _Failure):
                raise InputError(str(item))
            pixels, labels = item
            group.append(Batch(pixels, labels))
            if len(group) == plan.accumulation:
                yield group
                group = []

    def _items(self, numbers: range) -> Iterator[tuple[torch.Tensor, NDArray[np.int64]] | _Failure]:
        workers = min(self.config.workers, len(numbers))
        loader = DataLoader(
            _MicroBatches(self.plan),
            batch_size=None,  # an item is a whole micro-batch
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=self.config.prefetch if workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            pin_memory=self.pin_memory,
            # A forked worker shares the index of the records with its parent, page by page.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )
        try:
            yield from loader
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # All but the first come from the sockets through which tensors are handed over.
            raise worker_died(error) or error from None


def worker_died(error: Exception) -> InputError | None:
    """What to raise instead of the errors that a dead worker causes; None: ``error`` is something else.

    torch raises its RuntimeError from a handler of SIGCHLD, wherever the main thread then is, and again for the next
    worker that ends. From here on that handler is off, so that the message can be told.
    """
    if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
        return None
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return InputError(
        f"a decoding worker died: {' '.join(str(error).split())[:200]}; mostly memory or /dev/shm ran out: "
        "lower data.workers, data.prefetch or train.batch_size"
    )


def _as_it_is(item: object) -> object:
    return item


def _start_worker(worker: int) -> None:
    """One thread per worker, and no death by signals that are meant for the trainer, which saves first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
