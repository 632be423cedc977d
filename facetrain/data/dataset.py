"""Images with labels, wherever they lie: a .rec file, a folder per person, or a text file with paths."""

from __future__ import annotations

import errno
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.data.encoded import Encoded, FileChangedError
from facetrain.data.files import read_file
from facetrain.data.foreign_readers import MxnetImages, import_dali
from facetrain.data.images import Buffer, decode_upright, to_square
from facetrain.data.record_index import index_path
from facetrain.data.recordio import RecordFile
from facetrain.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".pgm", ".ppm", ".webp", ".bmp")
_OF_ONE_FILE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EINVAL,
    errno.EACCES,
    errno.ELOOP,
    errno.ENXIO,
    errno.EIO,
}
"""What can be the matter with one image; anything else is the matter with this machine or its way to the data."""
_LABEL = re.compile("-?[0-9]{1,18}")


class Images(Encoded, Protocol):
    """Encoded images with their classes. Picklable, so that worker processes can have it."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) int64, the class of each image."""

    @property
    def num_classes(self) -> int:
        """C; classes are 0..C-1."""


class PhotoFiles(Encoded):
    """Files with one photo each as :class:`Images`.

    They become pixels as ``facetrain data pack`` makes them by default, so that a photo is the same packed or not:
    turned as the camera's orientation tag says, the central square cut out, resized. A square upright crop stays what
    it is.
    """

    def __init__(self, root: Path, files: Sequence[str], labels: ArrayLike) -> None:
        """Name the files; none is opened yet.

        Args:
            root: the folder that relative paths start at.
            files: N paths. Text, as millions of ``Path`` objects would take several times the memory.
            labels: (N,) whole numbers, the classes; -1 where there is none.
        """
        self.root, self._files = root, files
        self.labels = np.asarray(labels, np.int64)
        self.num_classes = int(self.labels.max(initial=-1)) + 1

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def encoded(self, i: int) -> Buffer:
        """The bytes of file i."""
        try:
            return read_file(self.root / self._files[i])
        except OSError as error:
            problem = f"{self.where(i)} cannot be read: {error.strerror}"
            if error.errno in _OF_ONE_FILE:
                raise InputError(problem) from None
            raise FileChangedError(f"{problem}; see that the file system is there and start again") from None

    def where(self, i: int) -> str:
        """Path of image i."""
        return str(self.root / self._files[i])

    def check_unchanged(self) -> None:
        """FileChangedError where the folder is gone, with all files in it."""
        if not self.root.exists():
            raise FileChangedError(f"{self.root} disappeared while its photos were read; restore it and start again")

    def to_pixels(self, encoded: Buffer, out: NDArray[np.uint8]) -> None:
        """Decode a photo upright and cut its central square out."""
        np.copyto(out, to_square(decode_upright(encoded), len(out), "crop"))


def folder_images(root: Path) -> PhotoFiles:
    """A folder with one folder per person; classes are the sorted folder names.

    Raises:
        InputError: ``root`` holds no person with an image.
    """
    people = list_people(root)
    files = [f"{name}/{file}" for name, photos in people.items() for file in photos]
    return PhotoFiles(root, files, np.repeat(np.arange(len(people)), [len(photos) for photos in people.values()]))


def listed_images(path: Path) -> PhotoFiles:
    """A text file with one image a line, ``path`` or ``path label``; relative paths start at the file's folder.

    A list is its user's own: absolute paths are taken and links followed; but no path with ``..`` is, which
    could climb out of a set that came with its list.

    A label is a whole number of up to 18 digits behind the last blank; all lines have one, or none has and the labels
    are -1. The text is UTF-8, with or without a byte order mark.

    Raises:
        InputError: the list is unreadable or empty, has labels on some lines only, or a path with NUL or ``..``.
    """
    try:
        lines = read_file(path).decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"image list {path} cannot be read: {reason}; expected one image path a line") from None
    files: list[str] = []
    labels: list[int | None] = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        if "\0" in line:
            raise InputError(f"{path}:{number}: a NUL character; expected an image path, so write the list as text")
        *front, last = line.rsplit(maxsplit=1)
        label = int(last) if front and _LABEL.fullmatch(last) else None
        files.append(line if label is None else front[0])
        if ".." in files[-1].split("/"):
            raise InputError(f"{path}:{number}: {files[-1]} leads out of the list's folder; write the absolute path")
        labels.append(label)
        if (label is None) != (labels[0] is None):
            raise InputError(f"{path}:{number}: label a line or none; the first line has {labels[0]}, this {label}")
    if not files:
        raise InputError(f"image list {path} is empty; expected one image path a line")
    return PhotoFiles(path.parent, files, [-1 if label is None else label for label in labels])


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
            if _is_photo(entry):
                yield entry.name


def _is_photo(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()


def ignored_files(root: Path, people: Collection[str]) -> str:
    """What :func:`list_people` passed over under ``root``, counted, with an example of each kind; "" for nothing.

    Hidden files and folders are not mentioned. ``people`` are the names that it found.

    Raises:
        InputError: a folder cannot be listed.
    """
    strange, loose, nested, empty = (list[str]() for _ in range(4))
    kinds: defaultdict[str, int] = defaultdict(int)
    try:
        for top in _shown(root):
            if not top.is_dir():
                if _is_photo(top):
                    loose.append(top.name)
                    continue
                inside = [top]
            else:
                if top.name not in people:
                    empty.append(top.name)
                inside = [entry for entry in _shown(Path(top.path)) if not _is_photo(entry)]
            for entry in inside:
                path = os.path.relpath(entry.path, root)
                if entry.is_dir():
                    nested.append(path)
                    continue
                strange.append(path)
                suffix = Path(entry.name).suffix.lower()
                kinds[(suffix or "no suffix") if entry.is_file() else "broken links"] += 1
    except OSError as error:
        raise InputError(f"{error.filename} cannot be listed: {error.strerror}") from None
    named = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
    few = ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
    found = (
        (strange, "file", f" ({few})"),
        (loose, "photo", " outside a person's folder"),
        (nested, "folder", " inside a person's folder"),
        (empty, "folder", " without photos"),
    )
    return "; ".join(
        f"{len(paths):,} {what}{'' if len(paths) == 1 else 's'}{rest}, such as {paths[0]}"
        for paths, what, rest in found
        if paths
    )


def _shown(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def require_index(rec: Path) -> None:
    """InputError with the ways out where the .idx of a .rec is missing."""
    idx = index_path(rec)
    if rec.is_file() and not idx.exists():
        raise InputError(
            f"{idx} is missing, which says where the images of {rec.name} lie: restore it, make it with mxnet's "
            "tools/rec2idx.py, or pack the photos again"
        )


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
        return folder_images(path)
    if path.suffix != ".rec":
        raise InputError(f"{path} is not a .rec file; expected a .rec file or a folder with one folder per person")
    require_index(path)
    if reader == "mxnet":
        return MxnetImages(path)
    if reader not in ("native", "dali"):
        raise InputError(f"data.reader {reader} is unknown; expected native, mxnet or dali")
    if reader == "dali":  # it decodes what our reader finds, see facetrain.data.loader
        import_dali()
    return RecordFile(path)


def decode_batch(images: Images, indices: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
    """Decode images into rows of a batch.

    Args:
        images: the data.
        indices: (n,) image numbers.
        out: (n, size, size, 3) uint8, C-contiguous; images of another size become it as ``images`` says.

    Raises:
        InputError: an image cannot be decoded; the message begins with where it lies.
    """
    for row, i in zip(out, indices.tolist(), strict=True):
        images.decode(i, row)


def class_counts(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """(N,) labels in 0..C-1 to (C,) int64 images per class."""
    return np.bincount(labels, minlength=num_classes).astype(np.int64)
