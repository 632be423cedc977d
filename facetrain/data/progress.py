"""Long jobs: a progress line with rate and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from facetrain.console import console

_PLAIN_SECONDS = 10.0  # without a terminal, at most one line in this time


@contextmanager
def progress(what: str, total: int | None, unit: str = "images", least: int = 0) -> Iterator[Callable[[int], None]]:
    """A line on stderr with the share done, the rate and the time left; without a terminal a plain line now and then.

    Args:
        what: the job, for the line's start.
        total: how much there is to do; None where nobody knows.
        unit: what is counted.
        least: a smaller ``total`` gives no line.

    Yields:
        a function that is called with how much more is done.
    """
    if total is not None and total < least:
        yield lambda more: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed or 0:,.0f} {unit}/s")

    out = console(stderr=True)
    columns = (TextColumn(what), BarColumn(24), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
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
