"""Processes that end together, and leave their work in order when they are told to end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def follow(parent: int) -> None:
    """Get SIGTERM when ``parent``, the process that started this one, dies in whatever way (Linux; else nothing).

    The kernel may send it more than once, one for each of the parent's threads.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def orderly_end() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise SystemExit(128 + signal), so that half-written files are removed."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
