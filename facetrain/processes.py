"""Processes that end together, and signals that end them in good order."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

BOUNCE = 1.0
"""Seconds within which a second Ctrl-C is the first one again: some wrappers pass it on twice."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def follow(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Get a signal when ``parent``, the process that started this one, dies in whatever way (Linux; else nothing).

    The kernel may send it more than once, one for each of the parent's threads.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        raise SystemExit(128 + number)


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next allocations (glibc; elsewhere nothing happens: False).

    By default large blocks go back to the system at once, and every update's activations are mapped and cleared page by
    page again: a fifth to a third of the time of training on a CPU. The peak of memory stays about what it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


@contextmanager
def handling(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block ``handler`` gets these signals, but for those that were ignored before, as nohup does.

    Outside of the main thread, which alone may do this, nothing changes.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def orderly_end() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise SystemExit(128 + signal), so that half-written files are removed."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with handling([signal.SIGTERM, signal.SIGHUP], leave):
        yield


class StopRequest:
    """SIGINT, SIGTERM and SIGHUP ask the run to save and leave; a second SIGINT, :data:`BOUNCE` later, ends it at once.

    Attributes:
        signal: the last one's number; 0 before any.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._noted = 0.0

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take the signals within the context."""
        with handling([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], self._note):
            yield self

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal and number == signal.SIGINT and now - self._noted > BOUNCE:
            raise KeyboardInterrupt
        self.signal, self._noted = number, now
