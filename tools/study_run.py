"""Cells of a study as processes, some at a time: each stage of each cell, with a status that says how long it takes."""

from __future__ import annotations

import functools
import math
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table
from study_cells import TRAINING, Stage, argv, begin, finish, progress
from study_data import is_missing, make_data
from study_file import Cell

from facetrain.console import console
from facetrain.errors import InputError
from facetrain.processes import StopRequest, follow

GRACE = 60.0  # seconds that a training has to save and leave
_POLL = 0.2
_REFRESH_SECONDS = 1.0
_PLAIN_SECONDS = 60.0  # without a terminal, a line of status at most once in this time
_TRAINING_SHARE = 0.95  # of a cell's time, for the time left


@dataclass
class Job:
    """A cell on its way; owns its process."""

    cell: Cell
    stages: list[Stage]
    slot: int
    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0
    before: float = 0.0
    """What was done of the cell when this job began, 0..1."""

    @property
    def done(self) -> float:
        """The share of the cell's work that is done."""
        training = any(stage.name == TRAINING for stage in self.stages)
        return _TRAINING_SHARE * progress(self.cell) if training else _TRAINING_SHARE


class Runner:
    """Runs cells, at most ``jobs`` at once, each in a process of its own that dies with this one.

    Attributes:
        failed: what went wrong with which cell, or with all cells of a setting, in words.
        stopped: the signal that ended the study early, or 0.
    """

    def __init__(self, work: Sequence[tuple[Cell, list[Stage]]], jobs: int, nproc: int, gpus: int) -> None:
        self.waiting = [(cell, stages) for cell, stages in work if stages]
        self.total = len(self.waiting)
        self.slots = list(range(jobs))
        self.nproc, self.gpus = nproc, gpus
        self.running: list[Job] = []
        self.finished = 0.0
        self.failed: dict[str, str] = {}
        self.stopped = 0
        self._console = console(stderr=True)
        self._began = self._said = time.monotonic()
        self._shown = -math.inf

    def make_data(self) -> None:
        """Run the commands that make missing data, one after the other; cells whose data cannot be made fail."""
        made: dict[tuple[str, ...], str | None] = {}
        left = []
        with StopRequest().listening() as stop:
            for cell, stages in self.waiting:
                if cell.data not in made and not stop.signal and is_missing(cell):
                    made[cell.data] = make_data(cell, stop, self._say)
                problem = made.get(cell.data)
                if problem:
                    self.failed[cell.setting] = problem
                else:
                    left.append((cell, stages))
            self.waiting, self.stopped = left, stop.signal

    def run(self) -> None:
        """Everything that waits, until it is done or a signal ends it; a second Ctrl-C kills."""
        if self.stopped:
            return
        try:
            with (
                StopRequest().listening() as stop,
                Live(console=self._console, auto_refresh=False, transient=True) as live,
            ):
                while (self.waiting or self.running) and not stop.signal:
                    self._start()
                    self._look()
                    self._show(live)
                    time.sleep(_POLL)
                self.stopped = stop.signal
                if self.stopped:
                    self._stop()
        finally:
            for job in self.running:
                if job.process is not None and job.process.poll() is None:
                    os.killpg(job.process.pid, signal.SIGKILL)

    def _start(self) -> None:
        while self.waiting and self.slots:
            cell, stages = self.waiting.pop(0)
            job = Job(cell, list(stages), self.slots.pop(0))
            job.before = job.done
            try:
                begin(cell)
            except OSError as error:
                self._end(job, f"{error.filename} cannot be written: {error.strerror}")
                continue
            self.running.append(job)
            self._next(job)

    def _next(self, job: Job) -> None:
        command = argv(job.stages[0].command, self.nproc)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(job.slot % self.gpus)
        with (job.cell.folder / "log.txt").open("ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            job.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this driver alone, which passes it on once
                preexec_fn=functools.partial(follow, os.getpid()),
            )
        job.since = time.monotonic()

    def _look(self) -> None:
        for job in list(self.running):
            code = _started(job).poll()
            if code is None:
                continue
            stage = job.stages[0]
            seconds = time.monotonic() - job.since
            problem = _problem(job, code)
            if problem is None:
                try:
                    finish(job.cell, stage, seconds)
                except (InputError, OSError) as error:
                    problem = str(error)
            if problem is not None:
                self.running.remove(job)
                self._end(job, f"{stage.name} failed: {problem}")
                continue
            self._say(f"{job.cell.name}: {stage.name} done in {_clock(seconds)}")
            del job.stages[0]
            if job.stages:
                self._next(job)
            else:
                self.running.remove(job)
                self._end(job, None)

    def _end(self, job: Job, problem: str | None) -> None:
        self.slots.append(job.slot)
        self.finished += 1 - job.before
        if problem is not None:
            self.failed[job.cell.name] = problem
            self._say(f"{job.cell.name}: {problem} (see {job.cell.folder / 'log.txt'})")

    def _stop(self) -> None:
        """Ask every process to save and leave, and wait for them."""
        self._say(f"{signal.Signals(self.stopped).name}: {len(self.running)} runs may save and leave; Ctrl-C ends them")
        for job in self.running:
            _started(job).terminate()
        until = time.monotonic() + GRACE
        while time.monotonic() < until and any(_started(job).poll() is None for job in self.running):
            time.sleep(_POLL)

    def _left(self) -> str:
        """The time left, from what this session has done so far."""
        done = self.finished + sum(job.done - job.before for job in self.running)
        todo = len(self.waiting) + sum(1 - job.done for job in self.running)
        seconds = time.monotonic() - self._began
        return f"about {_clock(seconds * todo / done)} left" if done > 0.01 else "time left not known yet"

    def _headline(self) -> str:
        ended = self.total - len(self.waiting) - len(self.running)
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{ended} of {self.total} cells ended{failed}, {len(self.running)} running, {self._left()}"

    def _status(self) -> Group:
        table = Table(box=None, show_header=False)
        for job in self.running:
            table.add_row(job.cell.name, job.stages[0].name, f"{job.done:.0%}", _clock(time.monotonic() - job.since))
        return Group(self._headline(), table)

    def _show(self, live: Live) -> None:
        """The status, where it is due: a table in a terminal, else a line."""
        now = time.monotonic()
        if self._console.is_terminal and now - self._shown >= _REFRESH_SECONDS:
            self._shown = now
            live.update(self._status(), refresh=True)
        elif not self._console.is_terminal and now - self._said >= _PLAIN_SECONDS:
            self._say(self._headline())

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _started(job: Job) -> subprocess.Popen[bytes]:
    assert job.process is not None
    return job.process


def _problem(job: Job, code: int) -> str | None:
    """Why a process ended badly, by its last word; None where it did not."""
    if code == 0:
        return None
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    log: Path = job.cell.folder / "log.txt"
    lines = [line for line in _tail(log) if line.strip()]
    word = lines[-1].removeprefix("facetrain: ").removeprefix("error: ") if lines else ""
    return word if word and not word.startswith("$ ") else f"exit code {code}"


def _tail(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 4096))
        return file.read().decode(errors="replace").splitlines()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
