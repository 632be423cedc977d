"""Which classes take part in an update: those of the batch, and every other by a draw that any rank makes alike."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from facetrain.classifier.gpu_blocks import fused_kernels
from facetrain.keyed import GOLDEN, MIX_1, MIX_2, absorbed, text_key, uniform

_NEGATIVES = text_key("classifier negatives")
_AT_ONCE = 1 << 14  # classes whose draws stay in a processor's cache
_PROGRAM = 1024  # classes that one program of the kernel draws


def sample_classes(classes: range, labels: NDArray[np.int64], rate: float, seed: int, step: int) -> NDArray[np.int64]:
    """The shard's local rows that take part in an update, ascending int64.

    Every class of ``labels`` takes part; every other with probability ``rate``, by a draw keyed (seed, step, class).
    """
    return _with_present(_drawn(classes, rate, seed, step), classes, labels)


def _drawn(classes: range, rate: float, seed: int, step: int) -> NDArray[np.bool_]:
    """(K,) the outcome of each class's draw."""
    taken = np.empty(len(classes), np.bool_)
    for first in range(0, len(classes), _AT_ONCE):
        part = classes[first : first + _AT_ONCE]
        numbers = np.arange(part.start, part.stop, dtype=np.int64)
        np.less(uniform(seed, _NEGATIVES, step, numbers), rate, out=taken[first : first + len(part)])
    return taken


def _with_present(taken: NDArray[np.bool_], classes: range, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    present = labels[(labels >= classes.start) & (labels < classes.stop)]
    taken[present - classes.start] = True
    return np.flatnonzero(taken)


class Sampler:
    """:func:`sample_classes` for one step after the other.

    A GPU draws for the next step beside its other work, so that nobody waits for the answer.
    """

    def __init__(self, classes: range, rate: float, seed: int, device: torch.device) -> None:
        self.classes, self.rate, self.seed, self.device = classes, rate, seed, device
        self._on_gpu = device.type == "cuda" and rate < 1 and fused_kernels() is not None
        self._drawn_for: int | None = None
        if self._on_gpu:
            self._stream = torch.cuda.Stream(device, priority=-1)
            self._taken = torch.empty(len(classes), dtype=torch.uint8, device=device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # its memory may have had another use there
            self._host = torch.empty(len(classes), dtype=torch.uint8, pin_memory=True)
            self._done = torch.cuda.Event()

    def sample(self, labels: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """Local rows that take part in ``step``, ascending int64; ``labels`` of the whole update."""
        if not self._on_gpu:
            return sample_classes(self.classes, labels, self.rate, self.seed, step)
        if self._drawn_for != step:
            self._draw(step)
        self._done.synchronize()
        rows = _with_present(self._host.numpy().view(np.bool_).copy(), self.classes, labels)
        self._draw(step + 1)
        return rows

    def _draw(self, step: int) -> None:
        with torch.cuda.stream(self._stream):
            draw(self._taken, self.classes, self.rate, self.seed, step)
            self._host.copy_(self._taken, non_blocking=True)
            self._done.record(self._stream)
        self._drawn_for = step


def draw(taken: torch.Tensor, classes: range, rate: float, seed: int, step: int) -> None:
    """The outcome of each class's draw into ``taken`` (K,) uint8, by the kernel."""
    kernels = fused_kernels()
    assert kernels is not None
    state = int(absorbed(seed, _NEGATIVES, step).astype(np.int64))
    limit = math.ceil(rate * 2.0**53)
    kernels.draw[(-(-len(classes) // _PROGRAM),)](
        taken, len(classes), classes.start, state, limit, int(GOLDEN), int(MIX_1), int(MIX_2), _PROGRAM
    )
