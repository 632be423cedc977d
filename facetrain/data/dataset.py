"""Images with labels, wherever they lie: one protocol, opened from a .rec file or from a folder per person."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from facetrain.data.foreign_readers import MxnetImages
from facetrain.data.images import Buffer, decode, resize
from facetrain.data.recordio import RecordFile
from facetrain.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".webp", ".bmp")


class Images(Protocol):
    """Encoded images 0..N-1 with their classes. Picklable, so that worker processes can have it."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) int64, the class of each image."""

    @property
    def num_classes(self) -> int:
        """C; classes are 0..C-1."""

    def __len__(self) -> int:
        """N."""

    def encoded(self, i: int) -> Buffer:
        """The encoded bytes of image i, without a copy where the storage allows it."""

    def where(self, i: int) -> str:
        """Where image i lies, for messages: ``train.rec record 17 at byte 8123`` or a path."""


class RecordImages:
    """A .rec file as :class:`Images`."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` with its .idx; InputError where they are missing or damaged."""
        self.path = path
        self.file = RecordFile(path)
        self.labels = self.file.labels
        self.num_classes = self.file.num_classes

    def __len__(self) -> int:
        """Number of images."""
        return self.file.num_images

    def encoded(self, i: int) -> Buffer:
        """Encoded bytes of image i."""
        return self.file.image_bytes(i)

    def where(self, i: int) -> str:
        """File, record number and byte of image i."""
        return f"{self.path.name} record {self.file.record_number(i)} at byte {self.file.byte_offset(i)}"


class FolderImages:
    """A folder with one folder per person as :class:`Images`; classes are the sorted folder names."""

    def __init__(self, root: Path) -> None:
        """List ``root``; InputError where it holds no person with an image."""
        self.root = root
        people = list_people(root)
        self.names: tuple[str, ...] = tuple(people)
        self._files = [f"{name}/{file}" for name, files in people.items() for file in files]
        self.labels = np.repeat(np.arange(len(people), dtype=np.int64), [len(files) for files in people.values()])
        self.num_classes = len(people)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def path(self, i: int) -> Path:
        """The file of image i."""
        return self.root / self._files[i]

    def encoded(self, i: int) -> Buffer:
        """Encoded bytes of image i."""
        try:
            return self.path(i).read_bytes()
        except OSError as error:
            raise InputError(f"{self.where(i)} cannot be read: {error.strerror}") from None

    def where(self, i: int) -> str:
        """Path of image i."""
        return str(self.path(i))


def list_people(root: Path) -> dict[str, list[str]]:
    """Person (folder name) -> image file names, both sorted; people without an image are left out.

    Raises:
        InputError: ``root`` is not a folder, cannot be read, or holds no folder with images.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; expected one with a folder of photos per person")
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
        people = {name: sorted(_image_names(root / name)) for name in names}
    except OSError as error:
        raise InputError(f"{error.filename} cannot be listed: {error.strerror}") from None
    people = {name: files for name, files in people.items() if files}
    if not people:
        raise InputError(
            f"{root} holds no folder with {', '.join(extension[1:] for extension in EXTENSIONS)} files; "
            f"expected {root.name}/PERSON/PHOTO.jpg, one folder per person"
        )
    return people


def _image_names(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and entry.is_file():
                yield entry.name


def open_images(path: Path, reader: str = "native") -> Images:
    """Open training images.

    Args:
        path: a .rec file with its .idx beside it, a folder with ``train.rec`` in it, or a folder per person.
        reader: ``native``, or ``mxnet`` or ``dali`` to read a .rec through those libraries.

    Raises:
        InputError: nothing readable there, or the reader's library is not installed.
    """
    path = Path(path)
    if path.is_dir() and (path / "train.rec").is_file():
        path = path / "train.rec"
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a .rec file or a folder with one folder per person")
    if path.is_dir():
        if reader != "native":
            raise InputError(
                f"data.reader {reader} reads .rec files only and {path} is a folder: set data.reader to native"
            )
        return FolderImages(path)
    if path.suffix != ".rec":
        raise InputError(f"{path} is not a .rec file; expected a .rec file or a folder with one folder per person")
    if reader == "mxnet":
        return MxnetImages(path)
    if reader not in ("native", "dali"):
        raise InputError(f"data.reader {reader} is unknown; expected native, mxnet or dali")
    return RecordImages(path)  # DALI decodes what our reader finds, see facetrain.data.loader


def decode_batch(images: Images, indices: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
    """Decode images into rows of a batch.

    Args:
        images: the data.
        indices: (n,) image numbers.
        out: (n, size, size, 3) uint8, C-contiguous; images of another size are resized.

    Raises:
        InputError: an image cannot be decoded; the message begins with where it lies.
    """
    size = out.shape[1]
    if isinstance(images, MxnetImages):
        for row, i in zip(out, indices.tolist(), strict=True):
            np.copyto(row, resize(images.decode_image(i), size))
        return
    for row, i in zip(out, indices.tolist(), strict=True):
        encoded = images.encoded(i)
        try:
            decode(encoded, size, out=row)
        except InputError as error:
            raise InputError(f"{images.where(i)}: {error}") from None


def class_counts(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """(N,) labels in 0..C-1 to (C,) int64 images per class."""
    return np.bincount(labels, minlength=num_classes).astype(np.int64)
