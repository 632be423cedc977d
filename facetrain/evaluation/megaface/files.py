"""MegaFace's files: the devkit's lists of images, features as it lays them out or as matrices, and the noise lists.

A list is the devkit's JSON: ``path`` (one relative path per image) and, for FaceScrub, ``id`` (the person). The feature
of an image lies at its path with ``_ALGO.bin`` behind: an OpenCV header of four int32 (numbers, 1, 4, 5), then float32.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from facetrain.atomic import replacing
from facetrain.data.files import read_file
from facetrain.errors import InputError

FACESCRUB_LIST = "facescrub_features_list.json"
MEGAFACE_LIST = "megaface_features_list.json"
_SIZED = re.compile(rf"{re.escape(MEGAFACE_LIST)}_([0-9]{{1,9}})_([0-9]{{1,4}})")
_HEADER = struct.Struct("<4i")
_LARGEST_DIM = 1 << 16


@dataclass(frozen=True)
class ImageList:
    """One list of images: where it was read, relative paths, and the people where the list says them (else empty)."""

    source: Path
    paths: list[str]
    people: list[str]


def read_image_list(path: Path, *, people: bool) -> ImageList:
    """One of the devkit's lists.

    Args:
        path: the JSON file.
        people: whether it must say ``id`` too.

    Raises:
        InputError: unreadable, of another form, an image twice, a path that leaves its folder, or fewer or more images
            than the number in the file's name says.
    """
    tree = _json(path)
    names = _texts(tree, "path", path)
    if not names:
        raise InputError(f"{path}: the list is empty; expected at least one path")
    for name in names:
        check_relative(name, path)
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"{path}: {twice} is listed twice; each image counts once, so take the second one out")
    ids = _texts(tree, "id", path) if people else []
    if people and len(ids) != len(names):
        raise InputError(
            f"{path}: {len(names):,} paths and {len(ids):,} ids; each image needs its person, so use the devkit's own "
            "list and remove noisy images with --clean instead of from the list"
        )
    sized = _SIZED.fullmatch(path.name)
    if sized and int(sized[1]) != len(names):
        raise InputError(
            f"{path}: {len(names):,} paths where its name says {int(sized[1]):,}; use the devkit's own list and remove "
            "noisy images with --clean instead of from the list"
        )
    return ImageList(path, names, ids)


def distractor_lists(folder: Path, number: int) -> dict[int, Path]:
    """Size -> list of distractors of set ``number`` in ``folder``, smallest first; may be none."""
    matches = (_SIZED.fullmatch(name) for name in (sorted(os.listdir(folder)) if folder.is_dir() else []))
    found = {int(m[1]): folder / m[0] for m in matches if m and int(m[2]) == number}
    return dict(sorted(found.items()))


def check_relative(name: str, source: Path) -> None:
    """Refuse a path that does not stay in its folder.

    Raises:
        InputError: it is absolute, climbs, or is no path at all.
    """
    if not name or "\0" in name or name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
        raise InputError(f"{source}: {name!r} leaves the folder of images; expected a relative path without ..")


def read_noises(path: Path) -> frozenset[str]:
    """Names in a noise list: one a line, of lines with tabs the second field; ``#`` opens a comment line.

    Raises:
        InputError: it is unreadable, or not UTF-8.
    """
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"noise list {path} cannot be read: {_reason(error)}; expected an image a line, or use --clean none"
        ) from None
    fields = (line.strip().split("\t") for line in lines if not line.startswith("#"))
    return frozenset(field[1 if len(field) > 1 else 0].strip() for field in fields if field != [""])


class Features(Protocol):
    """The features of listed images, read as they are asked for; ``dim`` is D."""

    dim: int

    def __len__(self) -> int:
        """N."""

    def rows(self, which: NDArray[np.int64]) -> NDArray:
        """(n, D) features of these images, float32 or float16, not normalised.

        Raises:
            InputError: one is missing or damaged; says where it lies.
        """

    def where(self, i: int) -> str:
        """Where the feature of image i lies, for messages."""


class FeatureFiles:
    """A file for each feature, as the devkit has them."""

    def __init__(self, root: Path, paths: Sequence[str], algo: str) -> None:
        """Open ``root/PATH_ALGO.bin`` of all ``paths``; none is read yet but the first, which says how long all are."""
        self.root, self.paths, self.algo = root, paths, algo
        if not root.is_dir():
            raise InputError(f"{root} is not a folder; expected one with PATH_{algo}.bin for each image listed")
        self.dim = len(read_feature(self._path(0)))

    def __len__(self) -> int:
        """N."""
        return len(self.paths)

    def _path(self, i: int) -> Path:
        return feature_path(self.root, self.paths[i], self.algo)

    def rows(self, which: NDArray[np.int64]) -> NDArray:
        """(n, D) float32 of these files."""
        rows = np.empty((len(which), self.dim), np.float32)
        for row, i in zip(rows, which.tolist(), strict=True):
            feature = read_feature(self._path(i))
            if len(feature) != self.dim:
                raise InputError(
                    f"{self._path(i)} holds {len(feature)} numbers and {self._path(0)} {self.dim}; all features must "
                    "come from one model"
                )
            row[:] = feature
        return rows

    def where(self, i: int) -> str:
        """The file."""
        return str(self._path(i))


class FeatureMatrix:
    """Features as rows of a matrix, row i of image i."""

    def __init__(self, matrix: NDArray, source: Path | str, paths: Sequence[str] = ()) -> None:
        """Take (N, D) float32 or float16, also a read-only memory map; ``paths`` name the images in messages."""
        if matrix.ndim != 2 or matrix.dtype.kind != "f" or 0 in matrix.shape:
            raise InputError(f"{source} holds {matrix.shape} {matrix.dtype}; expected a row of real numbers per image")
        if paths and len(paths) != len(matrix):
            raise InputError(
                f"{source} has {len(matrix):,} rows and the list {len(paths):,} images; row i must be image i of it"
            )
        self.matrix, self.source, self.paths, self.dim = matrix, source, paths, matrix.shape[1]

    def __len__(self) -> int:
        """N."""
        return len(self.matrix)

    def rows(self, which: NDArray[np.int64]) -> NDArray:
        """(n, D), a view where the rows lie one after another."""
        first = int(which[0])
        if np.array_equal(which, np.arange(first, first + len(which))):
            return self.matrix[first : first + len(which)]
        return self.matrix[which]

    def where(self, i: int) -> str:
        """Row, and image where it is known."""
        return f"{self.source} row {i}" + (f" ({self.paths[i]})" if self.paths else "")


def open_matrix(path: Path, paths: Sequence[str] = ()) -> FeatureMatrix:
    """A .npy file of features, not read as a whole.

    Raises:
        InputError: unreadable, not a matrix of real numbers, or not a row for each of ``paths``.
    """
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a .npy matrix: {_reason(error)}") from None
    return FeatureMatrix(matrix, path, paths)


def feature_path(root: Path, image: str, algo: str) -> Path:
    """Where the feature of an image lies."""
    return root / f"{image}_{algo}.bin"


def read_feature(path: Path) -> NDArray[np.float32]:
    """The (D,) numbers of a feature file.

    Raises:
        InputError: missing, cut short, or not such a file.
    """
    try:
        content = read_file(path)
    except OSError as error:
        raise InputError(f"feature {path} cannot be read: {_reason(error)}; the list names its image") from None
    if len(content) < _HEADER.size:
        raise InputError(f"feature {path} is cut short: {len(content)} bytes, fewer than its header has")
    count, columns, size, kind = _HEADER.unpack_from(content)
    if (columns, size, kind) != (1, 4, 5) or not 1 <= count <= _LARGEST_DIM:
        raise InputError(
            f"feature {path} starts with {count}, {columns}, {size}, {kind}; expected D, 1, 4, 5 with D up to "
            f"{_LARGEST_DIM}"
        )
    if len(content) != _HEADER.size + 4 * count:
        raise InputError(
            f"feature {path} has {len(content)} bytes where {count} numbers take {_HEADER.size + 4 * count}; it is cut "
            "short or damaged"
        )
    return np.frombuffer(content, "<f4", offset=_HEADER.size)


def write_feature(path: Path, feature: NDArray[np.float32]) -> None:
    """Write (D,) numbers as the devkit reads them; the folder is there."""
    with replacing(path) as temporary:
        temporary.write_bytes(_HEADER.pack(len(feature), 1, 4, 5) + feature.astype("<f4").tobytes())


def _json(path: Path) -> dict[str, object]:
    try:
        tree = json.loads(read_file(path).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"list {path} cannot be read: {_reason(error)}; expected the devkit's JSON") from None
    if not isinstance(tree, dict):
        raise InputError(f'list {path} is not the devkit\'s JSON: expected {{"path": [...]}}')
    return tree


def _texts(tree: dict[str, object], key: str, path: Path) -> list[str]:
    values = tree.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError(f'list {path} has no "{key}" with a list of texts; expected the devkit\'s JSON')
    return values


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return " ".join(str(error).split())[:160]
