"""``profile: true``: a trace for chrome://tracing or Perfetto, and a table of where the time of an update goes."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from facetrain.atomic import replacing
from facetrain.distributed import World

WARM_UP, STEPS, TRACED = 10, 20, 5
"""Updates before the first that is measured, how many are, and how many are traced after them.

They are not the same ones: tracing costs time. A trace of more is slow to open.
"""
_NAMES = {
    "waiting for images": "data wait",
    "backbone": "backbone",
    "gathering embeddings": "gather",
    "logits": "logits",
    "backward": "backward",
    "update": "update",
    "LEAP": "LEAP",
}
"""Phases of the pulse and what the table calls them; the rest is "other"."""

_END = "end"


class Profile:
    """Measures some updates of this rank by the phases of its pulse, and traces a few.

    On a GPU the marks are events of the main stream: a phase has the time from its first kernel's turn to the next
    phase's, so work that overlaps it on other streams (DDP's sums) belongs to the phase that waits for it.
    """

    def __init__(self, folder: Path, world: World, start: int) -> None:
        """Prepare; nothing is measured yet.

        Args:
            folder: where ``trace_rank%05d.json.gz``, ``profile.txt`` and ``profile.json`` go.
            world: the ranks; each traces itself, rank 0 writes its table.
            start: updates made before this run's first.
        """
        self.folder, self.world = folder, world
        self._first = start + WARM_UP
        self._marks: list[tuple[str, Any]] = []  # phase, when it began
        self._range: Any = None
        self._profiler: Any = None

    updates = WARM_UP + STEPS + TRACED
    """How many a run must make."""

    @contextmanager
    def listening(self) -> Iterator[Profile]:
        """Within the context the phases come here."""
        self.world.pulse.at_phase = self._phase
        try:
            yield self
        finally:
            self.world.pulse.at_phase = None
            self._stop_trace()

    def after(self, step: int) -> str | None:
        """To call after every update, before the next waits for images.

        Returns:
            Once, when the results are written: the table and where it is.
        """
        if step == self._first:
            self._marks = [("waiting for images", self._now())]
        if step == self._first + STEPS:
            self._marks.append((_END, self._now()))
            self._start_trace()
        if step != self._first + STEPS + TRACED:
            return None
        try:
            return f"{self._write()}\nwritten to {self.folder}"
        except OSError as error:
            return f"warning: {self.folder} cannot be written: {error.strerror}; training goes on"

    def _phase(self, phase: str) -> None:
        if self._marks and self._marks[-1][0] != _END:
            self._marks.append((phase, self._now()))
        if self._profiler is not None:
            self._end_range()
            self._range = torch.profiler.record_function(f"facetrain: {_NAMES.get(phase, 'other')}")
            self._range.__enter__()

    def _end_range(self) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None

    def _now(self) -> Any:
        if self.world.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self) -> dict[str, float]:
        """Seconds of an update by the table's names, in its order."""
        taken: defaultdict[str, float] = defaultdict(float)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()
        for (phase, begun), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            seconds = begun.elapsed_time(ended) / 1000 if self.world.device.type == "cuda" else ended - begun
            taken[_NAMES.get(phase, "other")] += seconds / STEPS
        return {name: taken[name] for name in [*_NAMES.values(), "other"]}

    def _write(self) -> str:
        seconds = self._seconds()
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / f"trace_rank{self.world.rank:05d}.json.gz") as growing:
            self._stop_trace(growing)
        whole = sum(seconds.values())
        rows = [f"{name:<10}{second * 1000:>12.3f} ms{second / whole:>9.1%}" for name, second in seconds.items()]
        of = f"rank {self.world.rank} of {self.world.size} ({self.world.device.type})"
        head = f"an update of {of}, mean of {STEPS} after {WARM_UP}"
        text = "\n".join([head, *rows, f"{'all':<10}{whole * 1000:>12.3f} ms"])
        if self.world.rank:
            return text
        with replacing(self.folder / "profile.txt") as growing:
            growing.write_text(text + "\n")
        with replacing(self.folder / "profile.json") as growing:
            growing.write_text(json.dumps({"seconds": seconds, "updates": STEPS, "ranks": self.world.size}, indent=1))
        return text

    def _start_trace(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.world.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities, acc_events=True)
        self._profiler.start()

    def _stop_trace(self, file: Path | None = None) -> None:
        if self._profiler is None:
            return
        self._end_range()
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        if file is not None:
            plain = file.with_name(file.name + ".json.gz")  # the suffix says that it is to be compressed
            profiler.export_chrome_trace(str(plain))
            plain.rename(file)
