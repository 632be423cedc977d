"""Images that cannot be read while training: another of the same person stands in for each of them.

So labels, which every rank computes without asking the others, stay what they are. Which image stands in is a function
of the files, the seed and the image alone: the same on any rank, any number of ranks and workers, and after a resume.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from facetrain import keyed
from facetrain.data.augment import Change
from facetrain.data.dataset import Images
from facetrain.data.encoded import FileChangedError
from facetrain.data.foreign_readers import DaliDecoder, UndecodableError
from facetrain.data.images import Buffer, check_size, encode_jpeg
from facetrain.data.sampler import permutation
from facetrain.errors import InputError

GREY = 128
"""The level of the square that stands in where a person has no readable image left."""


class Damaged(NamedTuple):
    """An image that cannot be read or decoded."""

    image: int
    """Its number in the data set."""
    where: str
    """File, record number and byte, or path."""
    reason: str


def others(labels: NDArray[np.int64], seed: int, image: int) -> Iterator[int]:
    """The other images of ``image``'s person, each once, in an order keyed by (seed, image, attempt).

    Nothing is prepared for it: damage is rare, and looking through (N,) ``labels`` costs less than a batch.
    """
    own = np.flatnonzero(labels == labels[image])
    rest = own[own != image]
    key = int(keyed.bits(seed, keyed.text_key("stand-in"), image))
    for attempt in range(len(rest)):
        yield int(rest[permutation(len(rest), key, 0, np.array([attempt]))[0]])


class BatchDecoder:
    """Decodes the images of one process's batches and finds stand-ins; remembers what is damaged, to try it once."""

    def __init__(self, images: Images, seed: int, budget: int, dali: DaliDecoder | None = None) -> None:
        """Decode by ``dali``, or as ``images`` say.

        Args:
            images: the data.
            seed: the run's, the key of every choice.
            budget: damaged images that a run may meet; a process that alone has met more looks for no more stand-ins,
                as the run is about to stop.
            dali: decodes whole batches.
        """
        self._images, self._seed, self._budget, self._dali = images, seed, budget, dali
        self._known: dict[int, Damaged] = {}

    def decode(
        self, own: NDArray[np.int64], out: NDArray[np.uint8], changes: Sequence[Sequence[Change]]
    ) -> tuple[Damaged, ...]:
        """Decode images into rows of a batch and augment them.

        Args:
            own: (B,) image numbers.
            out: (B, size, size, 3) uint8, C-contiguous.
            changes: (B,) what is done to each image, or to what stands in for it.

        Returns:
            Every damaged image that was met, looking for stand-ins too; the same whatever was decoded before.

        Raises:
            FileChangedError: the data changed since they were opened.
        """
        self._images.check_unchanged()
        met: dict[int, Damaged] = {}
        if self._dali is not None and len(own):
            self._decode_by_dali(self._dali, own, out, met)
        for image, row, its_changes in zip(own.tolist(), out, changes, strict=True):
            if self._dali is None:
                try:
                    self._images.decode(image, row)
                except InputError as error:
                    self._note(image, error, met)
                    self._replace(image, row, met)
            for change in its_changes:
                change(row)
        return tuple(met.values())

    def _replace(self, image: int, row: NDArray[np.uint8], met: dict[int, Damaged]) -> None:
        for other in self._candidates(image, met):
            try:
                self._images.decode(other, row)
            except InputError as error:
                self._note(other, error, met)
            else:
                return
        row[...] = GREY

    def _decode_by_dali(
        self, dali: DaliDecoder, own: NDArray[np.int64], out: NDArray[np.uint8], met: dict[int, Damaged]
    ) -> None:
        grey = encode_jpeg(np.full(out.shape[1:], GREY, np.uint8))

        def fetch(candidates: Iterator[int]) -> tuple[int, Buffer]:
            """The next candidate whose bytes can be read, and they."""
            for candidate in candidates:
                try:
                    encoded = self._images.encoded(candidate)
                    check_size(encoded)
                except InputError as error:
                    self._note(candidate, error, met)
                else:
                    return candidate, encoded
            return -1, grey

        rows = [itertools.chain([image], self._candidates(image, met)) for image in own.tolist()]
        chosen = [fetch(candidates) for candidates in rows]
        while True:
            try:
                pixels = dali.decode(
                    [encoded for _, encoded in chosen], where=lambda position: self._images.where(chosen[position][0])
                )
                torch.from_numpy(out).copy_(pixels)
                return
            except UndecodableError as error:
                self._note(chosen[error.position][0], error, met)
                chosen[error.position] = fetch(rows[error.position])

    def _candidates(self, image: int, met: dict[int, Damaged]) -> Iterator[int]:
        """Who may stand in for ``image``; those who are known to be damaged are only added to ``met``."""
        for other in others(self._images.labels, self._seed, image):
            if len(self._known) > self._budget:
                return
            if other in self._known:
                met[other] = self._known[other]
            else:
                yield other

    def _note(self, image: int, error: InputError, met: dict[int, Damaged]) -> None:
        if isinstance(error, FileChangedError):
            raise error
        self._images.check_unchanged()  # an overwritten file is no damaged image
        where = self._images.where(image)
        before, found, after = str(error).partition(where)
        reason = after.removeprefix(":").strip() if found else before
        met[image] = self._known[image] = Damaged(image, " ".join(where.split()), " ".join(reason.split()))
