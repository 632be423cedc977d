"""What everything that holds encoded images has in common, and how their bytes become pixels."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from facetrain.data.images import Buffer, decode
from facetrain.errors import InputError


class FileChangedError(InputError):
    """The data themselves are gone, cut or replaced while they are in use: nothing that is one image's damage."""


class Encoded(Protocol):
    """Encoded images 0..N-1; a subclass needs ``__len__``, ``encoded`` and ``where`` and inherits the decoding.

    Here the images are crops that stand upright, as records and pair sets hold them: one of another shape is stretched,
    and a camera's orientation tag is left alone. Where they are something else, the subclass has its own ``to_pixels``.
    """

    def __len__(self) -> int:
        """N."""

    def encoded(self, i: int) -> Buffer:
        """The encoded bytes of image i, without a copy where the storage allows it.

        Raises:
            InputError: they cannot be read; says where they lie.
        """

    def where(self, i: int) -> str:
        """Where image i lies, for messages: ``train.rec record 17 at byte 8123`` or a path."""

    def check_unchanged(self) -> None:
        """For once a batch: FileChangedError where the files are no longer those that were opened."""
        return  # most images lie in no file that could change

    def to_pixels(self, encoded: Buffer, out: NDArray[np.uint8]) -> None:
        """Decode the bytes of one of these images into ``out``, (size, size, 3) RGB uint8, C-contiguous.

        Raises:
            InputError: they cannot be decoded; does not say where they lie.
        """
        decode(encoded, len(out), out=out)

    def decode(self, i: int, out: NDArray[np.uint8]) -> None:
        """Decode image i into ``out``, (size, size, 3) RGB uint8, C-contiguous.

        Raises:
            InputError: it cannot be read or decoded; says where it lies.
        """
        encoded = self.encoded(i)
        try:
            self.to_pixels(encoded, out)
        except InputError as error:
            raise InputError(f"{self.where(i)}: {error}") from None
