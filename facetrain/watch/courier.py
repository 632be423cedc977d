"""The thread that carries reports between ranks and to a file for health checks: it alone waits for the network."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from facetrain.atomic import replacing
from facetrain.distributed import World, common_store
from facetrain.watch import deaf_launcher
from facetrain.watch.meeting import Board
from facetrain.watch.pulse import HEARTBEAT, HEARTBEAT_SECONDS, Report, report_from
from facetrain.watch.verdict import Heard

_ALARM = "alarm"
_CONNECT = 10.0  # seconds


class Courier:
    """Posts this rank's report every ``interval`` seconds, looks for an alarm, and fetches reports when asked to."""

    def __init__(self, world: World, report: Callable[[], Report], interval: float, timeout: float) -> None:
        """Nothing runs before :meth:`start`.

        Args:
            world: the ranks.
            report: this rank's report of now.
            interval: seconds between two posts.
            timeout: seconds without a step that count as hanging, for the heartbeat file.
        """
        self.alarm = ""  # the line of the rank that ends the run, once there is one
        self.fetching = False  # whether to read the other ranks' reports too
        self._world, self._report, self._interval, self._timeout = world, report, interval, timeout
        self._launcher = report().launcher
        self._others = [rank for rank in range(world.size) if rank != world.rank]
        self._siblings = [rank for rank in self._others if world.hosts[rank] == world.hosts[world.rank]]
        self._seen: dict[int, tuple[Report, float]] = {}  # with the time when it was new
        self._fetching_since = self._contact = time.monotonic()
        self._raising = ""
        self._wake, self._done, self._carried = threading.Event(), threading.Event(), threading.Event()
        first = int(os.environ.get("LOCAL_RANK", "0")) == 0
        self._file = Path(os.environ[HEARTBEAT]) if first and os.environ.get(HEARTBEAT) else None
        self._written = -HEARTBEAT_SECONDS
        self._thread = threading.Thread(target=self._run, name="facetrain courier", daemon=True)

    def start(self) -> None:
        """Begin, where there is anybody to tell."""
        if self._others or self._file:
            self._thread.start()

    def stop(self, patience: float = 2.0) -> None:
        """Post this rank's last report and end, within ``patience`` seconds or, where the network hangs, unfinished."""
        self._done.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(patience)
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink()

    def raise_alarm(self, line: str, patience: float) -> str:
        """Tell all ranks the line to end with; the one that another rank told first, where one has."""
        if self._others and not self.cut:
            self._raising = line
            self._wake.set()
            self._carried.wait(patience)
        return self.alarm or line

    def fetch(self) -> None:
        """Begin to read the other ranks' reports; those known so far count as no news."""
        if not self.fetching:
            self._fetching_since = time.monotonic()
            self.fetching = True
            self._wake.set()

    @property
    def cut(self) -> float:
        """Seconds since the ranks' meeting point last answered; 0 while it does."""
        away = time.monotonic() - self._contact
        return away if self._others and away > self.silence else 0.0

    @property
    def silence(self) -> float:
        """Seconds without news after which a rank counts as silent."""
        return 4 * self._interval

    def heard(self) -> dict[int, Heard]:
        """What is known of each other rank; silence is counted only while :meth:`fetch` looks for news."""
        now, found = time.monotonic(), {}
        for rank in self._others:
            report, since = self._seen.get(rank, (None, 0.0))
            waited = now - max(since, self._fetching_since)
            gone = (
                report is not None
                and report.launcher == self._launcher
                and deaf_launcher.state(report.pid) in ("", "Z")
            )
            silent = waited if self.fetching and (gone or waited > self.silence) else 0.0
            if silent and report is not None:
                silent = max(silent, time.time() - report.sent)
            found[rank] = Heard(report, silent, gone)
        return found

    def left(self, rank: int) -> float:
        """Seconds until another rank counts as hanging, as far as is known."""
        report, since = self._seen[rank]
        return report.left - (time.monotonic() - since)

    def _run(self) -> None:
        board, reachable = None, bool(self._others)
        while True:
            ending = self._done.is_set()
            self._beat_file(ending)
            if reachable:
                try:
                    board = board or Board(common_store(_CONNECT), f"facetrain/{self._world.key}")
                    self._exchange(board)
                    self._contact = time.monotonic()
                except (RuntimeError, OSError, ValueError, TypeError):
                    reachable = False  # a store that breaks off has ended: it does not come back
            if ending:
                return
            self._wake.wait(self._interval)
            self._wake.clear()

    def _exchange(self, board: Board) -> None:
        board.post(str(self._world.rank), self._report().to_json())
        if self._raising and not self.alarm:
            self.alarm = board.post_first(_ALARM, self._raising)
            self._carried.set()
        self.alarm = self.alarm or board.read([_ALARM])[0]
        # Siblings are read once in any case: their process numbers are wanted when the store may be gone.
        wanted = self._others if self.fetching else [rank for rank in self._siblings if rank not in self._seen]
        for rank, text in zip(wanted, board.read([str(rank) for rank in wanted]), strict=True):
            if not text:
                continue
            report, known = report_from(text), self._seen.get(rank)
            if known is None or known[0].number != report.number:
                self._seen[rank] = report, time.monotonic()

    def _beat_file(self, ending: bool) -> None:
        now = time.monotonic()
        if self._file is None or ending or now - self._written < HEARTBEAT_SECONDS:
            return
        self._written = now
        report = self._report()
        beat = {"step": report.step, "place": report.place, "left": report.left, "timeout": self._timeout}
        with contextlib.suppress(OSError), replacing(self._file) as growing:
            growing.write_text(json.dumps(beat | {"written": time.time()}))
