"""What ranks tell each other through a key-value store before and beside their collectives; knows no torch."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Protocol

from facetrain.errors import LostRankError


class Store(Protocol):
    """What is used of ``torch.distributed.Store``; every method may raise RuntimeError where the store is gone."""

    def set(self, key: str, value: str) -> None:
        """Give a key a value."""

    def get(self, key: str) -> bytes:
        """A key's value, waited for where it has none."""

    def check(self, keys: list[str]) -> bool:
        """Whether all keys have values."""

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Give a key that has the value ``expected`` (empty: none) another; its value then."""


class Board:
    """Short texts that ranks leave for each other, of one round of processes.

    Any method may block as long as the network does (a link that is cut: for minutes), so none is for a thread that
    something depends on.
    """

    def __init__(self, store: Store, key: str) -> None:
        """``key`` is the round's own, so that nothing of an earlier one is read."""
        self._store, self._key = store, key

    def post(self, name: str, text: str) -> None:
        """Leave a text in the place of the last one of that name."""
        self._store.set(f"{self._key}/{name}", text)

    def post_first(self, name: str, text: str) -> str:
        """Leave a text unless there is one of that name; the one that is there then."""
        return self._store.compare_set(f"{self._key}/{name}", "", text).decode()

    def read(self, names: Sequence[str]) -> list[str]:
        """The texts of these names, empty where there is none."""
        return [read(self._store, f"{self._key}/{name}") for name in names]


def read(store: Store, key: str) -> str:
    """A key's value, empty where it has none."""
    return store.get(key).decode() if store.check([key]) else ""


def meet(store: Store, rank: int, size: int, patience: float, pause: float = 0.05) -> str:
    """A name that all ranks of this round have in common, and no earlier round had.

    torchrun keeps one store through its restarts, in which ranks would find the addresses of dead ones. So each rank
    greets with a number of its own, and rank 0 answers with its own and all greetings that it has seen: a rank that
    finds its greeting there knows that the answer is of now.

    Args:
        store: what the ranks can all reach, with whatever earlier rounds left in it.
        rank: this process, of ``size``.
        size: number of processes.
        patience: seconds to wait for the others.
        pause: seconds between two looks.

    Raises:
        LostRankError: the others did not come.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + patience
    missing, answered = set(range(1, size)), None
    if rank:
        store.set(f"facetrain/hello/{rank}", own)
    while time.monotonic() < end:
        if rank:
            name, greetings = json.loads(read(store, "facetrain/answer") or '["", {}]')
            if greetings.get(str(rank)) == own:
                store.set(f"facetrain/{name}/here/{rank}", own)
                return str(name)
        else:
            greetings = {str(other): read(store, f"facetrain/hello/{other}") for other in range(1, size)}
            if greetings != answered:
                store.set("facetrain/answer", json.dumps([own, greetings]))
                answered = greetings
            missing = {other for other in missing if not store.check([f"facetrain/{own}/here/{other}"])}
            if not missing:
                return own
        time.sleep(pause)
    whom = f"ranks {sorted(missing)[:8]} did not come" if rank == 0 else "rank 0 did not answer"
    raise LostRankError(f"rank {rank} waited {patience:.0f} s for the others to start: {whom}")
