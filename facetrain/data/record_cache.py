"""The index of a .rec on disk, so that it is read once and then shared by all processes of the machine.

From ``CACHE_FROM`` images on, the arrays lie in one .npy of 16 bytes an image (20 where the record numbers are not
consecutive) beside the .rec, or in the user's cache folder where that is read-only. It is used only while size and
time of change of both .rec and .idx are those it was made from, and written under another name first, so any number of
processes may race.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.atomic import replacing
from facetrain.data.record_index import Index, build_index, index_path
from facetrain.errors import InputError

CACHE_FROM = 100_000
_VERSION = 1
_HEADER = 16

Stamp = tuple[int, int, int, int, int]


def load_index(path: Path) -> tuple[Index, bool]:
    """The index of a .rec, and whether it is mapped from a cache (another process gets it from there, without a copy).

    Raises:
        InputError: as :func:`facetrain.data.record_index.build_index`.
    """
    before = stamp(path)
    places = cache_paths(path)
    if (index := _first(places, before)) is not None:
        return index, True
    with _alone(index_path(path)):
        # Another process of this machine may have done it while this one waited.
        if (index := _first(places, before)) is not None:
            return index, True
        index = build_index(path)
        if stamp(path) != before:
            raise InputError(f"{path} or its .idx changed while it was read; try again when nothing writes to it")
        if len(index.offsets) < CACHE_FROM:
            return index, False
        for place in places:
            if _store(place, before, index) and (mapped := _load(place, before)) is not None:
                return mapped, True
    return index, False


def stamp(path: Path) -> Stamp:
    """What tells this version of the two files from others: format version, sizes in bytes, times of change in ns."""
    try:
        rec, idx = path.stat(), index_path(path).stat()
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be opened: {error.strerror}; "
            f"expected {path.name} with {index_path(path).name} beside it"
        ) from None
    return _VERSION, rec.st_size, rec.st_mtime_ns, idx.st_size, idx.st_mtime_ns


def cache_paths(path: Path) -> tuple[Path, Path]:
    """Where the index may be kept, best first."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:24]
    return path.with_name(f"{path.stem}.index.npy"), home / "facetrain" / f"{name}.index.npy"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let the processes of a machine build one after another: the first does the work, the others find its file."""
    try:
        file = path.open("rb")
    except OSError:
        yield
        return
    with file:
        with suppress(OSError):  # some network file systems have no locks: then each builds for itself
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _first(places: tuple[Path, ...], expected: Stamp) -> Index | None:
    return next((index for place in places if (index := _load(place, expected)) is not None), None)


def _load(place: Path, expected: Stamp) -> Index | None:
    try:
        data: NDArray[np.int64] = np.lib.format.open_memmap(place, mode="r")
    except Exception:  # missing, or nothing of ours, whatever NumPy makes of its bytes
        return None
    if data.dtype != np.int64 or data.ndim != 1 or len(data) < _HEADER or tuple(data[:5].tolist()) != expected:
        return None
    count, first_number, has_numbers, identities = data[5:9].tolist()
    if count < 1 or len(data) != _HEADER + 2 * count + (has_numbers != 0) * (count + 1 >> 1):
        return None
    columns = np.asarray(data)[_HEADER:]
    numbers = columns[2 * count :].view(np.int32)[:count] if has_numbers else None
    return Index(columns[:count], columns[count : 2 * count], numbers, first_number, identities)


def _store(place: Path, made_from: Stamp, index: Index) -> bool:
    count = len(index.offsets)
    header = np.zeros(_HEADER, np.int64)
    header[:9] = *made_from, count, index.first_number, index.numbers is not None, index.identities
    columns = [header, index.offsets, index.labels]
    if index.numbers is not None:
        packed = np.zeros(count + 1 >> 1, np.int64)
        packed.view(np.int32)[:count] = index.numbers
        columns.append(packed)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as temporary, temporary.open("xb") as file:
            shape = (sum(len(column) for column in columns),)
            np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": shape})
            for column in columns:
                file.write(np.ascontiguousarray(column, "<i8").data)
    except OSError:
        return False
    return True
