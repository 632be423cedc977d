"""Ranks that take longer than the others for images and forward pass: measured without waiting, named when it lasts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from facetrain.distributed import World

SCORE = 0.75
"""Median of the ranks' times / own time: below it a rank straggles (as NVIDIA's resiliency extension has it)."""
WINDOW = 10
"""Steps of a window at least."""
_LASTING = 40  # steps, and two windows, for which a rank must be slow: others' work on the machine comes and goes
_SECONDS = 0.005  # a step more than the others take, at least: less is nobody's concern


@dataclass
class Slowness:
    """Which ranks straggle, judged window by window; no clock, no rank of its own.

    Attributes:
        slow: rank to (windows, steps) for which it has been slow without a break.
        named: ranks that were told and have not recovered since.
    """

    slow: dict[int, tuple[int, int]] = field(default_factory=dict)
    named: frozenset[int] = frozenset()

    def judge(self, seconds: Sequence[float], steps: int) -> list[tuple[int, float, int]]:
        """Take in a window of ``steps``: each rank's median seconds a step.

        Returns:
            (rank, times as long as the others', steps) of those that have been slow for long enough, each told once
            until it has had a window of the others' speed.
        """
        usual = statistics.median_low(seconds)  # of two ranks the quicker one
        now = [rank for rank, own in enumerate(seconds) if usual < SCORE * own and own - usual >= _SECONDS]
        before = self.slow
        self.slow = {
            rank: (windows + 1, total + steps) for rank in now for windows, total in [before.get(rank, (0, 0))]
        }
        lasting = {rank for rank, (windows, total) in self.slow.items() if windows >= 2 and total >= _LASTING}
        new = sorted(lasting - self.named)
        self.named = frozenset((self.named & set(now)) | lasting)
        return [(rank, seconds[rank] / max(usual, 1e-9), self.slow[rank][1]) for rank in new]


@dataclass
class Paces:
    """This rank's times since the last exchange, and what the exchanges showed.

    A step's time runs from :meth:`begin` to the entry into its first collective: waiting for images, and the forward
    pass of the backbone. On GPUs it lies between two events of the stream, looked at when they have passed anyway.
    """

    world: World
    slowness: Slowness = field(default_factory=Slowness)
    _times: list[float] = field(default_factory=list)
    _events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    _steps: int = 0

    def begin(self) -> None:
        """A step begins: before its images are waited for."""
        if self.world.size == 1:
            return
        self._steps += 1
        if self.world.device.type == "cuda":
            first, second = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()

            def passed() -> None:
                second.record()
                self._events.append((first, second))
        else:
            started = time.perf_counter()

            def passed() -> None:
                self._times.append(time.perf_counter() - started)

        self.world.pulse.at_collective = passed

    def exchange(self) -> list[str]:
        """Compare the ranks, where the window is long enough; every rank calls it after the same step.

        Returns:
            A line for each rank that is found to straggle, the same on every rank.
        """
        if self.world.size == 1 or self._steps < WINDOW:
            return []
        times = self._times + [first.elapsed_time(second) / 1000 for first, second in self._events if second.query()]
        everyone = torch.zeros(self.world.size, dtype=torch.float64, device=self.world.device)
        everyone[self.world.rank] = statistics.median(times) if times else 0.0
        medians = self.world.sum_(everyone).tolist()
        steps, self._steps = self._steps, 0
        self._times.clear()
        self._events.clear()
        if min(medians) == 0:  # a GPU was so late that no step of its window has passed
            return []
        return [
            f"rank {rank} on {self.world.hosts[rank]} takes {factor:.1f} x as long as the others for images and "
            f"forward pass over the last {total} steps"
            for rank, factor, total in self.slowness.judge(medians, steps)
        ]
