"""Buffers for batches in memory that all processes of a loader share, made once and written again and again.

A fresh piece of shared memory for every batch costs as much processor time as decoding it: the system clears its pages,
and maps them into two processes.
"""

from __future__ import annotations

import itertools
import mmap
import sys
from weakref import WeakValueDictionary

import torch

from facetrain.errors import InputError


class Ring:
    """Buffers for batches of one size; batch ``number`` lies in buffer ``number`` modulo their count.

    Whoever decodes batch n overwrites batch n - ``slots``, and nothing here looks whether somebody still reads that
    one: see :meth:`facetrain.data.loader.Loader._ring` for why nobody does. Make it before the workers are forked.
    """

    def __init__(self, slots: int, rows: int, size: int) -> None:
        """Reserve the memory; the system gives it page by page as it is written.

        Args:
            slots: buffers, at least one.
            rows: images in a batch, 0 or more.
            size: pixels a side.

        Raises:
            InputError: the machine has not that much memory.
        """
        self._pixels = _shared(slots * rows * size * size * 3).view(slots, rows, size, size, 3)
        self.key = next(_keys)
        _rings[self.key] = self

    def images(self, number: int) -> torch.Tensor:
        """(rows, size, size, 3) uint8, the buffer of batch ``number``."""
        return self._pixels[number % len(self._pixels)]


_keys = itertools.count()
_rings: WeakValueDictionary[int, Ring] = WeakValueDictionary()


def ring(key: int) -> Ring:
    """The ring that has this ``key`` in this process or the one it was forked from; for those who are sent a number."""
    return _rings[key]


def _shared(count: int) -> torch.Tensor:
    """(count,) uint8 in memory that stays one and the same after a fork; it ends with the last tensor that uses it."""
    if count == 0:
        return torch.empty(0, dtype=torch.uint8)
    if sys.platform != "linux":  # where workers are no forks, torch sends the memory's name along
        return torch.empty(count, dtype=torch.uint8).share_memory_()
    try:
        # Without a name in /dev/shm, which a killed run would leave there, and without its limit, 64 MB in containers.
        memory = mmap.mmap(-1, count)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no memory for {count / 1e9:,.1f} GB of image buffers ({error}): lower data.workers, data.prefetch or "
            "train.batch_size"
        ) from None
    return torch.frombuffer(memory, dtype=torch.uint8)
