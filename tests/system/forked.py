"""The real trainer on several ranks, forked from a server that has imported everything: a start costs half a second."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from ranks import CONTEXT
from torch.distributed import TCPStore

from facetrain.config import Config

LEAVING = 20.0
"""Seconds in which ranks that lost their peer must have left."""


@cache
def _store() -> TCPStore:
    """Where ranks meet: as under torchrun one store for all restarts, with all that the dead have left in it."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


class Trainer:
    """One start of ``facetrain.run.train``."""

    def __init__(self, config: Config, size: int, log: Path, setup: Callable[..., None] | None = None, *args: Any):
        """Start the ranks.

        Args:
            config: the recipe.
            size: number of ranks.
            log: file to which they append what they print.
            setup: a module's function, called as ``setup(rank, *args)`` in each rank before it trains.
            args: for ``setup``.
        """
        self.log = log
        common = (size, _store().port, config.model_dump(mode="json"), str(log), setup, args)
        self.ranks = [CONTEXT.Process(target=_rank, args=(rank, *common), daemon=True) for rank in range(size)]
        for process in self.ranks:
            process.start()

    def codes(self) -> list[int | None]:
        """Exit codes; None: still running."""
        return [process.exitcode for process in self.ranks]

    def wait(self, seconds: float = 120.0) -> list[int | None]:
        """Exit codes after the end of all, or None for ranks that still run after so many seconds."""
        end = time.monotonic() + seconds
        for process in self.ranks:
            process.join(max(0.0, end - time.monotonic()))
        return self.codes()

    def terminate(self) -> list[int | None]:
        """SIGTERM to those that run: they save and leave."""
        for process in self.ranks:
            if process.exitcode is None:
                process.terminate()
        return self.wait()

    def kill(self, victims: Sequence[int]) -> None:
        """SIGKILL to some ranks; returns when they are gone."""
        for victim in victims:
            os.kill(self.ranks[victim].pid, signal.SIGKILL)
        for victim in victims:
            self.ranks[victim].join()

    def end(self, pause: float) -> float:
        """End the ranks that are left as torchrun does when one died; the seconds that the slowest of them took.

        Args:
            pause: seconds until torchrun notices, up to 0.1.
        """
        begin = time.monotonic()
        if None in self.codes():
            time.sleep(pause)
        for process in self.ranks:
            if process.exitcode is None:
                process.terminate()
        left = self.wait(LEAVING)
        for process in self.ranks:
            process.kill()
            process.join()
        assert None not in left, f"a rank that lost its peer did not leave: {self.said()}"
        return time.monotonic() - begin

    def said(self) -> str:
        """The end of what the ranks printed."""
        return self.log.read_text()[-3000:] if self.log.exists() else ""


def _rank(
    rank: int,
    size: int,
    port: int,
    config: dict[str, Any],
    log: str,
    setup: Callable[..., None] | None,
    args: tuple[Any, ...],
) -> None:
    """In the forked process: torchrun's variables, then the trainer."""
    from facetrain import run
    from facetrain.errors import InputError, RunError

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)
    if setup is not None:
        setup(rank, *args)
    try:
        sys.exit(run.train(Config.model_validate(config)))
    except (InputError, RunError) as error:  # what the command line says
        print(f"rank {rank}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, InputError) else 1)
