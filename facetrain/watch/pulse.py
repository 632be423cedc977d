"""What a rank is doing: step, phase and last collective, noted by itself and read by its watchdog; without torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

HEARTBEAT = "FACETRAIN_HEARTBEAT"
"""In the environment: the file that a host's first rank rewrites while it lives; ``facetrain health`` reads it."""
HEARTBEAT_SECONDS = 5.0
"""Between two writes of it."""


@dataclass
class Pulse:
    """Where one rank stands. Only the training thread writes it; plain attributes, so that a note costs a microsecond.

    Attributes:
        step: updates made so far.
        phase: what the rank does now, in words that fit into "in ...".
        collective: the last collective that it entered.
        inside: whether it has not left that one yet; on GPUs, which are told and not waited for, True hardly ever.
        count: collectives entered so far.
        noted: when it last made progress (a beat, a collective left), on the monotonic clock.
        allowed: seconds that the phase may last beyond the usual timeout.
        at_collective: called once, when the next collective is entered.
        at_phase: called with each new phase.
        at_failure: called with an error of a collective, or one that passes :meth:`guarded`, before anything is tidied
            up.
    """

    step: int = 0
    phase: str = "the start"
    collective: str = ""
    inside: bool = False
    count: int = 0
    noted: float = field(default_factory=time.monotonic)
    allowed: float = 0.0
    at_collective: Callable[[], None] | None = None
    at_phase: Callable[[str], None] | None = None
    at_failure: Callable[[BaseException], None] | None = None

    def beat(self, step: int | None = None, phase: str | None = None, allowed: float | None = None) -> None:
        """Note progress.

        Args:
            step: updates made so far; None: as before.
            phase: what begins now; None: the same goes on (the next batch of a verification, say).
            allowed: seconds that phases may take beyond the timeout from here on (a compilation), until the next beat
                with a step or another allowance. Ranks that wait for this one in a collective do so for little more
                than the timeout, whatever is allowed here.
        """
        if step is not None:
            self.step = step
        if phase is not None:
            self.phase = phase
            if self.at_phase is not None:
                self.at_phase(phase)
        if step is not None or allowed is not None:
            self.allowed = allowed or 0.0
        self.noted = time.monotonic()

    def entering(self, collective: str) -> Self:
        """``with pulse.entering("sum"): ...`` around a collective."""
        if self.at_collective is not None:
            call, self.at_collective = self.at_collective, None
            call()
        self.collective, self.inside = collective, True
        self.count += 1
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:  # one that failed stays the place where the rank was
            self.inside, self.noted = False, time.monotonic()
        elif self.at_failure is not None:
            self.at_failure(error)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around what has collectives of others' making inside, as DDP's backward pass."""
        try:
            yield
        except RuntimeError as error:
            if self.at_failure is not None:
                self.at_failure(error)
            raise

    def where(self) -> str:
        """In words, after "step N,": the phase and the last collective."""
        if not self.collective:
            return f"in {self.phase}"
        return f"in {self.phase}, {'inside' if self.inside else 'after'} {self.collective} {self.count}"


@dataclass(frozen=True)
class Report:
    """A rank's pulse as the others get it.

    Attributes:
        number: grows with every report of the rank; the same number again is no sign of life.
        rank: whose.
        launcher: what started it: ranks with the same one can see each other's processes.
        pid: its process there.
        step: updates made.
        place: :meth:`Pulse.where`.
        count: collectives entered.
        left: seconds until the rank counts as hanging; negative: it does.
        sent: time of sending, seconds since 1970 on the sender's clock.
        end: last words of a rank that has left, empty before.
    """

    number: int
    rank: int
    launcher: str
    pid: int
    step: int
    place: str
    count: int
    left: float
    sent: float
    end: str = ""

    def to_json(self) -> str:
        """One line; :func:`report_from` reads it."""
        return json.dumps(vars(self))


def report_from(text: str | bytes) -> Report:
    """A report from :meth:`Report.to_json`; ValueError or TypeError where it is none."""
    fields: dict[str, Any] = json.loads(text)
    return Report(**fields)
