"""A backbone scored on pair sets, by all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation.extract import Progress, embed
from facetrain.evaluation.pairs import DistinctImages, PairSet, Protocol, Verification, names_apart, read_bin, verify
from facetrain.evaluation.scores import Rule


class Verifier:
    """Pair sets, read once and scored as often as asked, by all ranks; knows nothing of training.

    ``sets`` are the pair sets, in the order given, named as results are kept: ``heldout``, or where two files are named
    so ``FOLDER_heldout``.
    """

    def __init__(
        self,
        sets: Sequence[Path | PairSet],
        input_size: int,
        batch_size: int = 256,
        flip: bool = True,
        rule: Rule = "strict",
    ) -> None:
        """Read the .bin files; InputError where one is unreadable or two have one name."""
        read = [one if isinstance(one, PairSet) else read_bin(Path(one)) for one in sets]
        names = names_apart([(one.folder, one.name) for one in read])
        self.sets = [replace(one, name=name) for one, name in zip(read, names, strict=True)]
        self._distinct = [DistinctImages(one) for one in self.sets]
        self.input_size, self.batch_size, self.flip = input_size, batch_size, flip
        self.rule: Rule = rule

    @property
    def distinct_images(self) -> int:
        """How many images a run embeds; one that a set repeats counts once."""
        return sum(map(len, self._distinct))

    def run(
        self, backbone: nn.Module, world: World | None = None, progress: Progress | None = None
    ) -> list[tuple[str, Verification]]:
        """(name, result) of every set, the same on every rank; the backbone's mode is left as it was.

        Raises:
            InputError: an image of a set cannot be read, or an embedding is not finite.
        """
        results = []
        for one, distinct in zip(self.sets, self._distinct, strict=True):
            rows = embed(
                backbone,
                distinct,
                input_size=self.input_size,
                batch_size=self.batch_size,
                flip=self.flip,
                world=world,
                progress=progress,
            )
            found = verify_set(one.name, rows[distinct.row], one.same, flip=self.flip, rule=self.rule)
            results.append((one.name, replace(found, images=len(distinct))))
        return results


def verify_set(
    name: str, rows: NDArray, same: NDArray[np.bool_], *, flip: bool, rule: Rule, by: Protocol = "insightface"
) -> Verification:
    """:func:`facetrain.evaluation.pairs.verify` of a named set, whose name then stands in the error."""
    try:
        return verify(rows, same, flip=flip, rule=rule, by=by)
    except InputError as error:
        raise InputError(f"pair set {name}: {error}") from None
