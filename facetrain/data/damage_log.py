"""Which images of a run cannot be read: the same set on every rank, in a file, and within ``data.max_damaged``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from facetrain.atomic import replacing
from facetrain.data.damage import Damaged
from facetrain.data.loader import Batch
from facetrain.errors import RunError

FILE = "damaged_images.txt"
_HEADER = (
    "# Training images that could not be read; another of the same person stood in for each. A line each: number in "
    "the data set, where it lies, what is wrong.\n"
)


class Ranks(Protocol):
    """What of a :class:`facetrain.distributed.World` is needed here."""

    @property
    def rank(self) -> int:
        """This process's number."""

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""

    def gather_objects(self, thing: Any) -> list[Any]:
        """Every rank's object, in rank order."""


class DamageLog:
    """The damaged images that all ranks of a run have met; a part of its checkpoints."""

    def __init__(self, output: Path, budget: int, data: Path) -> None:
        """Start with none.

        Args:
            output: the run's folder, where rank 0 keeps ``damaged_images.txt``.
            budget: ``data.max_damaged``.
            data: ``data.path``, for messages.
        """
        self.path, self.budget, self.data = output / FILE, budget, data
        self._known: dict[int, Damaged] = {}
        self._new: dict[int, Damaged] = {}

    def __len__(self) -> int:
        """How many are known to every rank."""
        return len(self._known)

    def note(self, batches: Iterable[Batch]) -> None:
        """Take down what an update's batches met, on this rank alone."""
        for batch in batches:
            for damaged in batch.damaged:
                if damaged.image not in self._known:
                    self._new[damaged.image] = damaged

    def exchange(self, world: Ranks) -> str | None:
        """Tell the other ranks, all together at one step; costs one small collective where nobody met anything.

        Returns:
            A line of warning where there are new ones, the same on every rank; None where there are none.

        Raises:
            RunError: on every rank, where there are more than the budget.
        """
        if not world.largest(int(bool(self._new))):
            return None
        told = [Damaged(*damaged) for theirs in world.gather_objects(list(self._new.values())) for damaged in theirs]
        self._new.clear()
        self._known |= {damaged.image: damaged for damaged in told if damaged.image not in self._known}
        listed = self._write() if world.rank == 0 else True
        first = min(told)
        see = f"see {self.path}" if listed else f"{self.path} cannot be written"
        count = f"{len(self)} unreadable image{'s' * (len(self) > 1)}"
        example = f"the first: {first.where}: {first.reason}"
        if len(self) > self.budget:
            raise RunError(
                f"{count}, and data.max_damaged allows {self.budget}: mend them, for which 'facetrain data check "
                f"{self.data}' looks through all, or raise data.max_damaged; {see}; {example}"
            )
        return f"warning: {count} so far, of {self.budget} allowed; {see}; {example}"

    def state(self) -> list[list[Any]]:
        """What a checkpoint keeps, as JSON types; complete only after :meth:`exchange` of the same step."""
        return [list(self._known[image]) for image in sorted(self._known)]

    def restore(self, state: Iterable[Iterable[Any]]) -> None:
        """Go on with what :meth:`state` gave."""
        self._new.clear()
        self._known = {damaged.image: damaged for damaged in (Damaged(*item) for item in state)}

    def _write(self) -> bool:
        """Whether the list could be written: a full disk is no reason to end the run."""
        lines = [
            f"{image}\t{where}\t{reason}\n"
            for image, where, reason in map(self._known.__getitem__, sorted(self._known))
        ]
        try:
            with replacing(self.path) as temporary:
                temporary.write_text(_HEADER + "".join(lines), encoding="utf-8", errors="backslashreplace")
        except OSError:
            return False
        return True
