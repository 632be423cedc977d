"""A run that hangs or loses a rank ends soon: every rank's stack in a file, one line that names the rank to blame."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from facetrain import launch
from facetrain.checkpoints.files import listed
from facetrain.distributed import World, peers_failed
from facetrain.errors import LostRankError
from facetrain.watch import deaf_launcher
from facetrain.watch.courier import Courier
from facetrain.watch.pulse import Report
from facetrain.watch.verdict import HANGING, Heard, hanging, lost

_MARGIN = 10.0
_ECHO = 1.5  # seconds in which the other ranks have read an alarm
_DISK = 5.0  # seconds that stacks and the list of checkpoints may take: the file system may be what hangs


def group_timeout(timeout: float) -> float:
    """Seconds that a collective may wait where a step may take ``timeout``: the watchdog, who knows more, is first."""
    return timeout + _MARGIN


class Watchdog:
    """Within the context this rank's pulse must beat; a run in which no rank's does is ended, with its reason.

    An error of a collective that lost its peers ends the process as well, with the rank that is gone, and at once: what
    would follow is a tidying up that waits for threads which wait for that rank.
    """

    def __init__(self, world: World, output: Path, timeout: float) -> None:
        """Nothing runs before the context is entered.

        Args:
            world: the ranks; ``world.pulse`` is what is watched.
            output: the run's folder; stacks go to its folder ``stacks``.
            timeout: seconds without a beat that count as hanging.
        """
        self._world, self._output, self._timeout = world, output, timeout
        self._interval = min(0.5, timeout / 10)
        self._number, self._end = 0, ""
        self._launcher = f"{world.hosts[world.rank]} {_process_namespace()} {os.getppid()}"
        self._asleep = 0.0  # seconds that this process was stopped (Ctrl-Z) since the last beat
        self._noted = world.pulse.noted
        self._courier = Courier(world, self._report, self._interval, timeout)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="facetrain watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._world.pulse.beat()
        self._world.pulse.at_failure = self._failed
        self._courier.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._world.pulse.at_failure = None
        if error is not None:
            self._failed(error)
        self._end = "finished" if error is None else f"{type(error).__name__}: {error}"
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._courier.stop()

    def _failed(self, error: BaseException) -> None:
        """End this process where ``error`` says that a peer is lost."""
        if self._world.size > 1 and isinstance(error, RuntimeError) and peers_failed(error):
            self._done.set()
            self._thread.join()
            self._leave(self._lost_peers())

    def _report(self) -> Report:
        pulse, self._number = self._world.pulse, self._number + 1
        return Report(
            number=self._number,
            rank=self._world.rank,
            launcher=self._launcher,
            pid=os.getpid(),
            step=pulse.step,
            place=pulse.where(),
            count=pulse.count,
            left=self._left(),
            sent=time.time(),
            end=self._end,
        )

    def _left(self) -> float:
        """Seconds until this rank counts as hanging."""
        pulse = self._world.pulse
        return self._timeout + pulse.allowed + self._asleep - (time.monotonic() - pulse.noted)

    def _watch(self) -> None:
        tick = time.monotonic()
        rearmed, last = 0.0, list[int]()
        while not self._done.wait(self._interval):
            now = time.monotonic()
            if self._world.pulse.noted != self._noted:
                self._noted, self._asleep = self._world.pulse.noted, 0.0
            if now - tick > 4 * self._interval + 1:
                self._asleep += now - tick
            tick = now
            if now - rearmed > 1:
                # Told by a thread without Python: even code that never lets go of the interpreter is found in the act.
                faulthandler.dump_traceback_later(max(1.0, 0.8 * self._timeout), file=2)
                rearmed = now
            if self._courier.alarm:
                self._leave(self._courier.alarm)
            left = self._left()
            died = [
                rank
                for rank, heard in self._courier.heard().items()
                if heard.gone and heard.report and not heard.report.end
            ]
            if died and died == last:  # looked at twice: its last words may have been on their way
                self._leave(self._lost_peers())
            last = died
            if left < 8 * self._interval or died:
                self._courier.fetch()
            else:
                self._courier.fetching = False
            if left < 0 and not any(self._moving(rank, heard) for rank, heard in self._courier.heard().items()):
                self._leave(self._courier.raise_alarm(self._hanging(), patience=2.0))

    def _moving(self, rank: int, heard: Heard) -> bool:
        """Whether another rank may still come to where this one waits, as far as is known."""
        if heard.report is None or heard.silent or heard.report.end:
            return False
        return self._courier.left(rank) > 0

    def _hanging(self) -> str:
        waited = self._timeout + self._world.pulse.allowed - self._left()
        return hanging(
            waited, self._report(), self._courier.heard(), self._world.hosts, self._courier.cut, self._good()
        )

    def _lost_peers(self) -> str:
        """Look for the rank that is gone for as long as a silent one takes to be noticed."""
        until = time.monotonic() + self._courier.silence + 2 * self._interval
        self._courier.fetch()
        while time.monotonic() < until and not self._courier.alarm:
            heard = self._courier.heard()
            if any(other.silent or (other.report and other.report.end) for other in heard.values()):
                break
            time.sleep(self._interval / 5)
        line = lost(self._report(), self._courier.heard(), self._world.hosts, self._good())
        return self._courier.raise_alarm(line, patience=1.0)

    def _good(self) -> str:
        """What can be gone on from; the file system may be what hangs, so it is asked from a thread."""
        found: list[str] = []

        def look() -> None:
            good = listed(self._output / "checkpoints")
            found.append(f"go on from {good[-1].name}" if good else "no checkpoint yet")

        _within(_DISK, look)
        return found[0] if found else "the checkpoints' disk does not answer"

    def _leave(self, line: str) -> None:
        """Write the stacks, say why, and end this process at once."""
        faulthandler.cancel_dump_traceback_later()
        if line.startswith(HANGING):
            _within(_DISK, self._write_stacks)
        silent = [rank for rank, heard in self._courier.heard().items() if heard.silent]
        told = launch.leave_word(line)
        here = self._world.hosts[self._world.rank]
        able = [r for r, there in enumerate(self._world.hosts) if there == here and r not in silent]
        if self._world.rank == able[0] and not (told and launch.under_our_launcher()):
            sys.stderr.write(f"\nfacetrain: error: {line}\n")
            sys.stderr.flush()
        if line.startswith(HANGING) and self._world.size > 1:
            time.sleep(_ECHO)  # the first one to leave takes the others along: let them write as well
        self._kill(silent)
        _kill_forks()
        if self._courier.cut and "TORCHELASTIC_RUN_ID" in os.environ and not launch.under_our_launcher():
            deaf_launcher.see_to(os.getppid())
        os._exit(LostRankError.exit_code)

    def _write_stacks(self) -> None:
        path = self._output / "stacks" / f"step-{self._world.pulse.step:08d}-rank-{self._world.rank:05d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as file:
            faulthandler.dump_traceback(file)

    def _kill(self, silent: list[int]) -> None:
        """End this launcher's processes that no longer run: a stopped one would keep it waiting for half a minute."""
        heard = self._courier.heard()
        for rank in silent:
            report = heard[rank].report
            if report is None or report.launcher != self._launcher:
                continue
            # Where nobody can be heard, a sibling's silence says nothing: it is about to leave like this one.
            if not self._courier.cut or deaf_launcher.state(report.pid) in ("T", "t"):
                with contextlib.suppress(OSError):
                    os.kill(report.pid, signal.SIGKILL)


def _kill_forks() -> None:
    """End this process's copies, which decode images: one that is stopped would not notice that it shall."""
    own = _command(os.getpid())
    for pid in deaf_launcher.children(os.getpid()):
        if own and _command(pid) == own:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _process_namespace() -> str:
    """Names the set of processes that this one can see: containers may have a host's name in common (Linux)."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _within(seconds: float, act: Callable[[], None]) -> None:
    """Do ``act``, or what of it succeeds, and go on after ``seconds`` at the latest."""

    def careful() -> None:
        with contextlib.suppress(OSError):
            act()

    thread = threading.Thread(target=careful, daemon=True)
    thread.start()
    thread.join(seconds)
