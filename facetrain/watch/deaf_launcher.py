"""Ends a torchrun that no longer notices the end of its workers; a process of its own, for it must outlive them.

A torchrun that is cut off from its store waits in a system call for an answer, deaf to SIGTERM and to its workers,
until TCP gives up after a quarter of an hour; then it ends as well. Its GPUs would be idle for as long.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 5.0
"""Seconds in which a torchrun that hears has noticed that its workers ended: it looks ten times a second."""
_LONGEST = 60.0


def see_to(launcher: int) -> None:
    """Start a process that ends ``launcher`` where it proves deaf; the caller and its siblings end now."""
    with contextlib.suppress(OSError):
        subprocess.Popen(
            [sys.executable, "-m", "facetrain.watch.deaf_launcher", str(launcher)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def state(pid: int) -> str:
    """A process's state as in /proc (Z: ended and not waited for, T: stopped); empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def children(pid: int) -> list[int]:
    """A process's children, ended ones that it has not waited for included (Linux)."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in path.read_text().split()]
    return found


def end_if_deaf(launcher: int, patience: float = PATIENCE, longest: float = _LONGEST) -> bool:
    """Watch ``launcher`` for ``longest`` seconds; kill it where it leaves all its children unnoticed for ``patience``.

    Returns:
        Whether it was killed.
    """
    end, since = time.monotonic() + longest, time.monotonic()
    while time.monotonic() < end and state(launcher) not in ("", "Z"):
        workers = children(launcher)
        if not workers or any(state(worker) != "Z" for worker in workers):
            since = time.monotonic()
        elif time.monotonic() - since > patience:
            os.kill(launcher, signal.SIGKILL)
            return True
        time.sleep(0.1)
    return False


if __name__ == "__main__":
    end_if_deaf(int(sys.argv[1]))
