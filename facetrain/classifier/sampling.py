"""Which classes take part in an update: those of the batch, and every other by a draw that any rank makes alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facetrain.classifier.columns import Targets
from facetrain.classifier.gpu_blocks import fused_kernels, has_kernels
from facetrain.distributed import to_device
from facetrain.keyed import GOLDEN, MIX_1, MIX_2, absorbed, text_key, uniform

_NEGATIVES = text_key("classifier negatives")
_AT_ONCE = 1 << 14  # classes whose draws stay in a processor's cache
_PROGRAM = 1024  # classes that one program of the kernel draws


def sample_classes(classes: range, labels: NDArray[np.int64], rate: float, seed: int, step: int) -> NDArray[np.int64]:
    """The shard's local rows that take part in an update, ascending int64.

    Every class of ``labels`` takes part; every other with probability ``rate``, by a draw keyed (seed, step, class).
    """
    taken = _drawn(classes, rate, seed, step)
    taken[_present(classes, labels)] = True
    return np.flatnonzero(taken)


def _drawn(classes: range, rate: float, seed: int, step: int) -> NDArray[np.bool_]:
    """(K,) the outcome of each class's draw."""
    taken = np.empty(len(classes), np.bool_)
    for first in range(0, len(classes), _AT_ONCE):
        part = classes[first : first + _AT_ONCE]
        numbers = np.arange(part.start, part.stop, dtype=np.int64)
        np.less(uniform(seed, _NEGATIVES, step, numbers), rate, out=taken[first : first + len(part)])
    return taken


def _present(classes: range, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The shard's local rows of the classes that ``labels`` has, ascending."""
    return np.unique(labels[(labels >= classes.start) & (labels < classes.stop)]) - classes.start


@dataclass(frozen=True)
class Sample:
    """The rows of a shard that take part in an update.

    Attributes:
        rows: (S,) int64 on the device, ascending.
        host: the same on the host; None where that would have to wait for the device.
        places: (K,) int32 on the device, how many rows take part up to and with each; given where ``host`` is not.
    """

    rows: Tensor
    host: NDArray[np.int64] | None = None
    places: Tensor | None = None

    def targets(self, local: NDArray[np.int64]) -> Targets:
        """From each image's row of the shard (G,), -1 where its class is another rank's."""
        if self.host is not None:
            return Targets.known(np.where(local < 0, -1, np.searchsorted(self.host, local)), self.rows.device)
        assert self.places is not None
        row = to_device(local, self.rows.device)
        return Targets(torch.where(row < 0, -1, self.places[row.clamp_min(0)].long() - 1), None)


class Sampler:
    """:func:`sample_classes` for one step after the other.

    A GPU draws for the next step beside its other work and puts the rows in order itself: the host asks for their
    number alone, which is there by then.
    """

    def __init__(self, classes: range, rate: float, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self.classes, self.rate, self.seed, self.device = classes, rate, seed, device
        self._on_gpu = rate < 1 and len(classes) > 0 and has_kernels(device, dtype)
        self._drawn_for: int | None = None
        if self._on_gpu:
            self._stream = torch.cuda.Stream(device, priority=-1)
            self._taken = torch.empty(len(classes), dtype=torch.uint8, device=device)
            self._count = torch.empty((), dtype=torch.int64, pin_memory=True)
            self._done = torch.cuda.Event()

    def sample(self, labels: NDArray[np.int64], step: int) -> Sample:
        """The rows that take part in ``step``; ``labels`` of the whole update."""
        if not self._on_gpu:
            rows = sample_classes(self.classes, labels, self.rate, self.seed, step)
            return Sample(to_device(rows, self.device), rows)
        if self._drawn_for != step:
            self._draw(step)
        present = _present(self.classes, labels)
        added = int((uniform(self.seed, _NEGATIVES, step, present + self.classes.start) >= self.rate).sum())
        torch.cuda.current_stream(self.device).wait_event(self._done)
        self._taken.index_fill_(0, to_device(present, self.device), 1)
        self._done.synchronize()
        sample = compacted(self._taken, int(self._count) + added)
        self._draw(step + 1)
        return sample

    def _draw(self, step: int) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self.device))  # the last sample is made of the same memory
        with torch.cuda.stream(self._stream):
            draw(self._taken, self.classes, self.rate, self.seed, step)
            self._count.copy_(self._taken.sum(dtype=torch.int64), non_blocking=True)
            self._done.record(self._stream)
        self._drawn_for = step


def draw(taken: Tensor, classes: range, rate: float, seed: int, step: int) -> None:
    """The outcome of each class's draw into ``taken`` (K,) uint8, by the kernel."""
    kernels = fused_kernels()
    assert kernels is not None
    state = int(absorbed(seed, _NEGATIVES, step).astype(np.int64))
    limit = math.ceil(rate * 2.0**53)
    kernels.draw[(-(-len(classes) // _PROGRAM),)](
        taken, len(classes), classes.start, state, limit, int(GOLDEN), int(MIX_1), int(MIX_2), _PROGRAM
    )


def compacted(taken: Tensor, count: int) -> Sample:
    """The sample of the ``count`` rows that ``taken`` (K,) uint8 has a 1 for, by the kernel."""
    kernels = fused_kernels()
    assert kernels is not None
    places = torch.cumsum(taken, 0, dtype=torch.int32)
    rows = torch.empty(count, dtype=torch.int64, device=taken.device)
    kernels.compact[(-(-len(taken) // _PROGRAM),)](taken, places, rows, len(taken), _PROGRAM)
    return Sample(rows, places=places)
