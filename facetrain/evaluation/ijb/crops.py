"""Loose crops as images to embed: cut out by their landmarks when they are decoded, and never outside their folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.data.encoded import Encoded
from facetrain.data.files import look_up, read_file
from facetrain.data.images import Buffer, decode
from facetrain.errors import InputError
from facetrain.evaluation.ijb.align import similarity, warp


class LooseCrops(Encoded):
    """N photos somewhat larger than a face, with the five landmarks that tell where it is."""

    def __init__(self, folder: Path, names: list[str], landmarks: NDArray) -> None:
        """Name the files; none is opened yet.

        Args:
            folder: where they lie.
            names: N paths in it; :func:`check_crops` first.
            landmarks: (N, 5, 2) columns and rows in each, see :data:`facetrain.evaluation.ijb.align.POINTS`.
        """
        self.folder, self.names = folder, names
        self._landmarks, self._matrices = landmarks, similarity(landmarks)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def encoded(self, i: int) -> Buffer:
        """The bytes of file i."""
        try:
            return read_file(self.folder / self.names[i])
        except OSError as error:
            raise InputError(f"{self.where(i)} cannot be read: {error.strerror}") from None

    def where(self, i: int) -> str:
        """Path of image i."""
        return str(self.folder / self.names[i])

    def content(self, i: int) -> bytes:
        """What the pixels of image i depend on besides its bytes."""
        return np.asarray(self._landmarks[i], "<f4").tobytes()

    def decode(self, i: int, out: NDArray[np.uint8]) -> None:
        """Decode image i and cut the face out."""
        encoded = self.encoded(i)
        try:
            image = decode(encoded)
        except InputError as error:
            raise InputError(f"{self.where(i)}: {error}") from None
        warp(image, self._matrices[i], out)


def check_crops(folder: Path, names: list[str], listing: Path, missing_allowed: bool = False) -> None:
    """Refuse a list of images before any is opened.

    Args:
        folder: where the images must be.
        names: N names, one a line of ``listing``.
        listing: the list they are from, for messages.
        missing_allowed: images that are not there are left to be counted as unreadable, where not all of them are.

    Raises:
        InputError: a name that is absolute, climbs out with ``..``, holds a NUL or leads out over a symbolic link; no
            folder; images that are not there.
    """
    for line, name in enumerate(names, start=1):
        parent, _, file = name.rpartition("/")
        if "\0" in name or file in ("", ".", "..") or (parent and not set(name.split("/")).isdisjoint(("", ".", ".."))):
            raise InputError(f"{listing}:{line}: {ascii(name)[:80]} is no file name inside {folder.name}/")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected the images that {listing.name} names, such as {names[0]}")
    missing, outside = look_up(folder, names)
    if outside:
        path = folder / names[outside[0]]
        raise InputError(
            f"{listing}:{outside[0] + 1}: {path} is a link that leads out of {folder}; copy the file itself there"
        )
    if missing and (len(missing) == len(names) or not missing_allowed):
        first = missing[0]
        raise InputError(
            f"{folder} lacks {len(missing):,} of the {len(names):,} images that {listing.name} names, the first "
            f"{names[first]} (line {first + 1}); copy the whole folder, or give --skip-unreadable"
        )
