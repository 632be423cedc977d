"""What ranks hold of something that is spread over them by class, as files that any number of ranks can read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facetrain.errors import InputError


@dataclass(frozen=True)
class Shard:
    """One rank's piece; saved as a file of its own, ``NAME-RANK-of-RANKS.safetensors``.

    Attributes:
        name: of the whole, for example ``classifier``.
        classes: the global classes of this rank, K of C.
        rows: tensors (K, ...), a row a class.
        ragged: flat tensors in which class after class has its own number of slots.
        slots: (C + 1,) where each global class's slots would begin if one rank had them all; needed with ``ragged``.
        loose: tensors of any length that belong to these classes; readers get those of all ranks, one after another.
    """

    name: str
    classes: range
    rows: dict[str, Tensor]
    ragged: dict[str, Tensor] = field(default_factory=dict)
    slots: NDArray[np.int64] | None = None
    loose: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything to write."""
        return {**self.rows, **self.ragged, **self.loose}

    @property
    def span(self) -> dict[str, str]:
        """Which classes they are, as a file's metadata say it."""
        return {"first_class": str(self.classes.start), "end_class": str(self.classes.stop)}

    def fill(self, checkpoint: Path, opened: Callable[[Path], Any], hint: str) -> dict[str, Tensor]:
        """Fill rows and ragged tensors, in place, from the files of any number of ranks; the loose ones of all ranks.

        Args:
            checkpoint: the folder.
            opened: opens a safetensors file as a context.
            hint: which key of the recipe decides what the files hold, for messages.

        Raises:
            InputError: the files are of another data set or another recipe.
        """
        filled = 0
        loose: dict[str, list[Tensor]] = {name: [] for name in self.loose}
        files = sorted(checkpoint.glob(f"{self.name}-*.safetensors"))
        if not files:
            raise InputError(
                f"checkpoint {checkpoint} holds no {self.name} state; {hint} was different when it was made"
            )
        for file in files:
            with opened(file) as held:
                if set(held.keys()) != set(self.tensors):
                    raise InputError(f"{file} holds {sorted(held.keys())}, but {hint} needs {sorted(self.tensors)}")
                for name in loose:
                    loose[name].append(held.get_tensor(name).clone())
                first, end = (int(held.metadata()[key]) for key in ("first_class", "end_class"))
                self._check_slots(held, file, first, end)
                start, stop = max(first, self.classes.start), min(end, self.classes.stop)
                if start < stop:
                    filled += stop - start
                    self._copy(held, file, first, range(start, stop))
        if filled != len(self.classes):
            raise InputError(
                f"checkpoint {checkpoint} holds {filled} of this rank's {len(self.classes)} classes; is it of another "
                "data set?"
            )
        return {name: torch.cat(parts) for name, parts in loose.items()}

    def _copy(self, held: Any, file: Path, first: int, classes: range) -> None:
        """Copy what an open file, whose first class is ``first``, holds of some of this rank's classes."""
        own = self.classes.start
        for name, tensor in self.rows.items():
            rows = held.get_slice(name)[classes.start - first : classes.stop - first]
            if rows.shape[1:] != tensor.shape[1:]:
                raise InputError(
                    f"{file}: {name} has rows of {tuple(rows.shape[1:])}, the recipe needs {tuple(tensor.shape[1:])}"
                )
            tensor[classes.start - own : classes.stop - own].copy_(rows)
        for name, tensor in self.ragged.items():
            assert self.slots is not None
            there, here = self.slots[classes.start] - self.slots[first], self.slots[classes.start] - self.slots[own]
            length = int(self.slots[classes.stop] - self.slots[classes.start])
            tensor[int(here) : int(here) + length].copy_(held.get_slice(name)[int(there) : int(there) + length])

    def _check_slots(self, held: Any, file: Path, first: int, end: int) -> None:
        """Refuse a file whose classes first..end-1 have other numbers of slots than these data give them."""
        for name in self.ragged:
            assert self.slots is not None
            found = held.get_slice(name).get_shape()[0]
            expected = self.slots[min(end, len(self.slots) - 1)] - self.slots[first]
            if found != expected:
                raise InputError(
                    f"{file}: {name} has {found} slots, these data need {expected}: its classes have other numbers of "
                    "images"
                )
