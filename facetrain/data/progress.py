"""Long jobs: a progress line with rate and time left, and an ordered map over processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from facetrain import processes
from facetrain.console import console
from facetrain.errors import InputError

T = TypeVar("T")
R = TypeVar("R")

_PLAIN_SECONDS = 10.0  # without a terminal, at most one line in this time


@contextmanager
def progress(what: str, total: int | None, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """A line on stderr with the share done, the rate and the time left; without a terminal a plain line now and then.

    Args:
        what: the job, for the line's start.
        total: how much there is to do; None where nobody knows.
        unit: what is counted.

    Yields:
        a function that is called with how much more is done.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed or 0:,.0f} {unit}/s")

    out = console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        started = said = time.monotonic()
        done = 0

        def advance(more: int) -> None:
            nonlocal done, said
            done += more
            bar.advance(task, more)
            now = time.monotonic()
            if not out.is_terminal and now - said >= _PLAIN_SECONDS:
                said, rate = now, done / (now - started)
                left = f" of {total:,}, {(total - done) / rate:.0f} s left" if total else ""
                out.print(f"{what}: {done:,}{left}, {rate:,.0f} {unit}/s", highlight=False)

        yield advance


def default_workers(items: int) -> int:
    """Processes for a job of ``items`` images: one per core that this process may use, none for a short job."""
    return 1 if items < 2000 else max(1, min(len(os.sched_getaffinity(0)), 64))


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], workers: int, setup: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[R]:
    """``function`` of every item, in order, over worker processes; a few results are in memory at once.

    The processes end with this one, and at once where the caller takes no more results or is interrupted.

    Args:
        function: a module's top-level function.
        items: its arguments.
        workers: 1 runs in this process.
        setup: called once in every process, before any item.
        arguments: of ``setup``.

    Raises:
        InputError: a worker process died.
    """
    if workers <= 1:
        setup(*arguments)
        yield from map(function, items)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(os.getpid(), setup, arguments))
    others = set(multiprocessing.active_children())
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
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


def _start(parent: int, setup: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import cv2

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # a copy of the parent has its handlers too
    processes.follow(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the pool
    cv2.setNumThreads(0)
    setup(*arguments)
