"""What a run says while it runs: a live line or plain lines, metrics.jsonl and TensorBoard. Rank 0 alone speaks."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from facetrain.atomic import replacing
from facetrain.console import console

_PLAIN_SECONDS = 10.0  # without a terminal, at most one progress line in this time


def memory_gib(device: torch.device) -> float:
    """Peak memory in GiB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Monitor:
    """Progress and records of one run; on other ranks than 0 every call does nothing."""

    def __init__(self, output: Path, start_step: int, total_steps: int, device: torch.device, active: bool) -> None:
        self.active, self.device, self.total_steps = active, device, total_steps
        self.console = console(stderr=True, quiet=not active)
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        kept = self._keep_until(output / "metrics.jsonl", start_step)
        self._known = {(record.get("kind"), record["step"], record.get("set")) for record in kept}
        self._records = open(output / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115 - closed in __exit__
        self._board = SummaryWriter(str(output / "tensorboard"), purge_step=start_step + 1)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=total_steps, completed=start_step, numbers="")
        self._complained = False
        self._started = self._last_time = self._last_plain = time.monotonic()
        self._first_step = start_step

    def __enter__(self) -> Monitor:
        if self.active:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self._progress.stop()
            self._keep(self._records.close)
            self._keep(self._board.close)

    def say(self, line: str) -> None:
        """One line to the person at the console."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def interval(self, step: int, epoch: float, loss: float, gradient_norm: float, lr: float, images: int) -> None:
        """Numbers of the interval that ended with update ``step``; ``images`` were seen in it by all ranks."""
        if not self.active:
            return
        now = time.monotonic()
        seconds = max(now - self._last_time, 1e-9)
        rate, memory = images / seconds, memory_gib(self.device)
        self._last_time = now
        self._record(
            {"kind": "train", "step": step, "epoch": round(epoch, 4), "loss": loss, "lr": lr}
            | {
                "gradient_norm": gradient_norm,
                "images_per_second": round(rate, 1),
                "memory_gib": round(memory, 3),
                "seconds": round(now - self._started, 2),
            }
        )
        scalars = {"loss": loss, "gradient_norm": gradient_norm, "lr": lr}
        for name, value in (scalars | {"images_per_second": rate, "memory_gib": memory}).items():
            self._scalar(f"train/{name}", value, step)
        numbers = f"epoch {epoch:.2f}  loss {loss:.4f}  lr {lr:.2e}  {rate:.0f} img/s  {memory:.2f} GiB"
        self._progress.update(self._task, completed=step, numbers=numbers)
        if not self.console.is_terminal and (now - self._last_plain >= _PLAIN_SECONDS or step == self.total_steps):
            self._last_plain = now
            left = (now - self._started) / max(1, step - self._first_step) * (self.total_steps - step)
            self.say(f"step {step}/{self.total_steps}  {numbers}  {_clock(left)} left")

    def pause(self) -> None:
        """Begin the next interval now: evaluation and saving do not count as training time."""
        if self.active:
            self._last_time = time.monotonic()

    def verification(self, step: int, name: str, record: dict[str, Any]) -> None:
        """The result of one pair set; a finished run that is verified again has it already."""
        if not self._is_new("verification", step, name):
            return
        self._record({"kind": "verification", "step": step, "set": name, **record})
        self._scalar(f"{name}/accuracy", record["accuracy"], step)
        for fpr, tpr in record["tpr"].items():
            self._scalar(f"{name}/tpr_at_fpr_{fpr}", tpr, step)

    def leap(self, step: int, record: dict[str, float | None]) -> None:
        """Spreads of the classes in radians, and the clouds since the last record; None: there is none yet."""
        if not self._is_new("leap", step):
            return
        self._record({"kind": "leap", "step": step, **record})
        for name, value in record.items():
            if value is not None:
                self._scalar(f"leap/{name}", value, step)

    def angles(self, step: int, epoch: float, counts: dict[str, list[int]]) -> None:
        """Histograms of the angles to the class centres, of ``head`` and ``tail``: a count for each degree."""
        if not self._is_new("angles", step):
            return
        self._record({"kind": "angles", "step": step, "epoch": round(epoch, 4), **counts})
        for name, of_degree in counts.items():
            found = np.array(of_degree)
            degree, filled = np.arange(len(found)), np.flatnonzero(found)
            if len(filled):
                histogram = partial(
                    self._board.add_histogram_raw,
                    f"leap_degrees/{name}",
                    min=int(filled[0]),
                    max=int(filled[-1]) + 1,
                    num=int(found.sum()),
                    sum=float((found * (degree + 0.5)).sum()),
                    sum_squares=float((found * (degree + 0.5) ** 2).sum()),
                    bucket_limits=(degree + 1).tolist(),
                    bucket_counts=found.tolist(),
                    global_step=step,
                )
                self._keep(histogram)

    def _is_new(self, kind: str, step: int, name: str | None = None) -> bool:
        """Whether this process writes records and a run that was resumed at ``step`` has not written this one."""
        return self.active and (kind, step, name) not in self._known

    def _record(self, entry: dict[str, Any]) -> None:
        self._keep(lambda: self._records.write(json.dumps(entry) + "\n"))

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._keep(lambda: self._board.add_scalar(name, value, step))

    def _keep(self, write: Callable[[], object]) -> None:
        """Write a record; a disk that refuses costs records, not the run, and is told once."""
        try:
            write()
        except OSError as error:
            if not self._complained:
                self._complained = True
                self.say(
                    f"warning: metrics.jsonl or tensorboard/ cannot be written: {error.strerror}; training goes on"
                )

    @staticmethod
    def _keep_until(file: Path, step: int) -> list[dict[str, Any]]:
        """The records up to ``step``; later ones, whose updates a resumed run makes again, are dropped from the file.

        So is a half-written last line.
        """
        if not file.exists():
            return []
        kept = []
        for line in file.read_text().splitlines():
            try:
                record = json.loads(line)
                if record["step"] <= step:
                    kept.append(record)
            except (ValueError, KeyError, TypeError):
                continue
        with replacing(file) as growing:
            growing.write_text("".join(json.dumps(record) + "\n" for record in kept))
        return kept


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
