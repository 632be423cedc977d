"""Jobs over worker processes, results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from facetrain import processes
from facetrain.errors import InputError

C = TypeVar("C")
T = TypeVar("T")
R = TypeVar("R")

_SHORT, _MOST = 2000, 64


def cores() -> int:
    """CPU cores that this process may use; where the system does not say, those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(items: int) -> int:
    """Processes for a job of ``items`` images: one per core, up to 64; a short job stays in this process (1)."""
    return 1 if items < _SHORT else min(cores(), _MOST)


def ordered_map(function: Callable[[C, T], R], items: Iterable[T], workers: int, common: C) -> Iterator[R]:
    """``function(common, item)`` of every item, in order, over worker processes; a few results are in memory at once.

    The processes end with this one, and at once where the caller takes no more results or is interrupted.

    Args:
        function: a module's top-level function.
        items: its second arguments.
        workers: 1 runs in this process.
        common: its first argument, handed to each process once.

    Raises:
        InputError: a worker process died.
    """
    if workers <= 1:
        for item in items:
            yield function(common, item)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(os.getpid(), function, common))
    others = set(multiprocessing.active_children())
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            "a worker process died, mostly because memory ran out: close other programs and start again"
        ) from None
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_job: tuple[Callable[[Any, Any], Any], Any]
"""In a worker process: the function and its first argument."""


def _start(parent: int, function: Callable[[Any, Any], Any], common: Any) -> None:
    import cv2

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # a copy of the parent has its handlers too
    processes.follow(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the pool
    cv2.setNumThreads(0)
    global _job
    _job = function, common


def _call(item: Any) -> Any:
    function, common = _job
    return function(common, item)
