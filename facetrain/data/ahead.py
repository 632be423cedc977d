"""Items that a thread of this process makes before they are asked for, as worker processes would."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from queue import SimpleQueue
from typing import TypeVar

import torch

T = TypeVar("T")


def made_ahead(
    items: Iterator[T], depth: int, surroundings: Callable[[], AbstractContextManager[object]]
) -> Iterator[T]:
    """The same items in the same order, of which a thread begins no more than ``depth`` beyond the one handed over.

    Args:
        items: what the thread asks for the next item; nobody else may.
        depth: items that are made or lie ready while the consumer has another, at least one.
        surroundings: a context that the thread makes them in.

    Raises:
        Exception: what making an item raised, in its place.
    """
    ready: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    wanted, left = threading.Semaphore(depth), threading.Event()

    def work() -> None:
        try:
            with surroundings():
                while wanted.acquire() and not left.is_set():
                    ready.put((next(items), None))
        except BaseException as error:  # StopIteration too
            ready.put((None, error))

    thread = threading.Thread(target=work, name="decoding ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            wanted.release()
            yield item  # type: ignore[misc]  # None only beside an error
    finally:
        left.set()
        wanted.release()
        thread.join()


@contextmanager
def beside_training(gpu: int) -> Iterator[None]:
    """For a thread that decodes on a GPU: a stream of its own, which waits for no kernel of the training step."""
    with torch.cuda.device(gpu), torch.cuda.stream(torch.cuda.Stream(gpu)):
        yield
