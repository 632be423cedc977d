"""Embeddings kept on disk by what they were made from, written block by block so that a killed extraction goes on.

```
CACHE/1f0c.../                  one entry, named after the hash of its key
  rows.npy                      (N, D) float32, not normalised; NaN for unreadable images
  state.json                    format, key, names of model and first image, D, [rows, CRC-32] of each finished block,
                                unreadable images
  lock                          held by the one process (rank 0 of it) that verifies or writes
```

A block counts when its rows are on the disk and ``state.json`` has been replaced after that. Whoever opens an entry
compares key, shape and the checksum of every block first: what follows the first bad block is embedded again, and an
entry of another format or key is begun anew. Nothing in it can run code.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from facetrain.atomic import replacing
from facetrain.console import console
from facetrain.distributed import World
from facetrain.errors import InputError

FORMAT = 1
BLOCK = 1024
"""About how many images are lost at most when an extraction is killed."""
ROWS, STATE, LOCK = "rows.npy", "state.json", "lock"
_POLL_SECONDS = 0.2
_PIECE = 1 << 22


Told = list[tuple[int, str]]  # (number of an unreadable image, why)


@dataclass(frozen=True)
class Key:
    """What embeddings depend on: hashes of the weights and of the images, their number, flip, size, kind of device."""

    model: str
    images: str
    count: int
    flip: bool
    input_size: int
    device: str

    def folder(self, cache: Path) -> Path:
        """Where the entry lies."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return cache / hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class _State:
    """``state.json``, checked."""

    columns: int
    finished: list[tuple[int, int]]
    unreadable: Told


class Entry:
    """An entry that this process alone may write to, verified; ``folder`` is where it lies."""

    def __init__(self, folder: Path, key: Key, model_name: str, first: str = "") -> None:
        """Verify what is there, without an error where it is damaged: it then has fewer finished images, or none.

        ``model_name`` and ``first``, where the first image lies, are kept for people to read.
        """
        self.folder, self._key, self._about = folder, key, {"model_name": model_name, "first": first}
        self._state = _read_state(folder, key)
        if self._state is not None:
            good = _good_blocks(folder / ROWS, key.count, self._state)
            self._state.finished = self._state.finished[:good]
            self._state.unreadable = [one for one in self._state.unreadable if one[0] < self.finished]

    @property
    def finished(self) -> int:
        """How many images are embedded and verified, from the first on."""
        return sum(rows for rows, _ in self._state.finished) if self._state else 0

    @property
    def unreadable(self) -> Told:
        """The unreadable ones of the finished images."""
        return self._state.unreadable if self._state else []

    def forget(self) -> None:
        """Begin anew with the next :meth:`append`."""
        self._state = None

    @property
    def size(self) -> int:
        """Bytes of the rows, once there are any."""
        return self._key.count * self._state.columns * 4 if self._state else 0

    def append(self, rows: NDArray[np.float32], unreadable: Told) -> None:
        """Add the rows after ``finished``, on the disk when this returns; and those of them that are unreadable.

        Raises:
            InputError: they cannot be written; what was finished before stays so.
        """
        try:
            if not self.finished:
                self._begin(rows.shape[1])
            self._write(rows.astype("<f4", copy=False), unreadable)
        except OSError as error:
            raise _unwritable(self.folder, error) from None

    def _begin(self, columns: int) -> None:
        """A new file of rows, full of holes; an old one stays with whoever has it mapped."""
        needed, free = self._key.count * columns * 4, _free_bytes(self.folder)
        if needed > free:
            raise InputError(
                f"the embeddings take {needed / 1e9:.2f} GB and the cache {self.folder.parent} has {free / 1e9:.2f} GB "
                "free: clear it with facetrain eval cache --clear, name another with --cache or give --no-cache"
            )
        for left in self.folder.glob(".*.tmp"):  # by a process that was killed
            left.unlink()
        with replacing(self.folder / ROWS) as temporary, temporary.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (self._key.count, columns)}
            npy.write_array_header_1_0(file, header)
            file.truncate(file.tell() + needed)
        self._state = _State(columns, [], [])

    def _write(self, rows: NDArray[np.float32], unreadable: Told) -> None:
        assert self._state is not None
        data = rows.tobytes()
        with (self.folder / ROWS).open("r+b") as file:
            file.seek(-(self._key.count - self.finished) * self._state.columns * 4, os.SEEK_END)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._state.finished.append((len(rows), zlib.crc32(data)))
        self._state.unreadable += unreadable
        record = {"format": FORMAT, "key": asdict(self._key), **self._about, **asdict(self._state)}
        with replacing(self.folder / STATE) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")


def read_entry(cache: Path, key: Key) -> tuple[NDArray[np.float32], Told]:
    """The rows (N, D), as a read-only memory map, and the unreadable images of an entry that is known to be complete.

    Raises:
        InputError: it has gone.
    """
    folder = key.folder(cache)
    state = _read_state(folder, key)
    try:
        rows: NDArray[np.float32] = npy.open_memmap(folder / ROWS, mode="r")
    except (OSError, ValueError):
        state = None
    if state is None:
        raise InputError(f"the cache's entry {folder} has gone while it was used; run the command again")
    return rows, state.unreadable


@contextmanager
def claimed(cache: Path, key: Key, model_name: str, world: World, first: str = "") -> Iterator[Entry | None]:
    """The entry of ``key`` for these ranks alone, on rank 0; None on the others. Waits for others that write it.

    ``model_name`` and ``first`` are as for :class:`Entry`.

    Raises:
        InputError: on every rank, where it cannot be made or is not seen by all ranks.
    """
    folder = key.folder(cache)
    lock: BinaryIO | None = None
    entry: Entry | None = None
    told = False
    try:
        while True:
            problem = None
            if world.rank == 0:
                try:
                    lock = try_lock(folder)
                    entry = Entry(folder, key, model_name, first) if lock else None
                except OSError as error:
                    problem = str(_unwritable(folder, error))
            # Each turn is a collective of all ranks, so that none of them waits longer than a collective may.
            problem, ready = world.broadcast_object((problem, entry is not None))
            if problem:
                raise InputError(problem)
            if ready:
                break
            if world.rank == 0 and not told:
                told = True
                console(stderr=True).print(f"another process fills {folder}: waiting for it", highlight=False)
            time.sleep(_POLL_SECONDS)
        if not all(world.gather_objects(folder.is_dir())):
            raise InputError(
                f"the cache {cache} is not on a file system that all machines share: name one with --cache, or give "
                "--no-cache"
            )
        yield entry
    finally:
        if lock is not None:
            lock.close()


def try_lock(folder: Path) -> BinaryIO | None:
    """The open, locked lock file of an entry, whose folder is made; None where another process has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)  # embeddings are personal data
    try:
        file = (folder / LOCK).open("ab")
    except FileNotFoundError:  # the entry is just being removed
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # some network file systems have no locks: checksums then find what two writers did
        return file
    with suppress(OSError):
        if os.fstat(file.fileno()).st_ino == (folder / LOCK).stat().st_ino:
            return file
    file.close()  # the entry was removed in between
    return None


def _read_state(folder: Path, key: Key) -> _State | None:
    """``state.json`` of this key; None where there is none, or anything else in its place."""
    try:
        record: Any = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if record["format"] != FORMAT or record["key"] != asdict(key):
            return None
        finished = [(whole_number(rows), whole_number(crc)) for rows, crc in record["finished"]]
        unreadable = [(whole_number(image), str(reason)) for image, reason in record["unreadable"]]
        return _State(whole_number(record["columns"]), finished, unreadable)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def whole_number(value: Any) -> int:
    """``value``, where it is an int from 0 on; ValueError else."""
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _good_blocks(path: Path, count: int, state: _State) -> int:
    """How many of the blocks, from the first on, are what was written."""
    good = 0
    try:
        rows = npy.open_memmap(path, mode="r")
        offset: int = rows.offset  # type: ignore[attr-defined]  # NumPy's own stub leaves it out
        whole = path.stat().st_size == offset + rows.nbytes and rows.flags.c_contiguous
        if not whole or rows.shape != (count, state.columns) or rows.dtype != np.dtype("<f4"):
            return 0
        with path.open("rb") as file:
            file.seek(offset)
            for length, expected in state.finished:
                left, crc = min(length, count) * state.columns * 4, 0
                while left and (piece := file.read(min(left, _PIECE))):
                    left, crc = left - len(piece), zlib.crc32(piece, crc)
                if left or crc != expected or length > count:
                    break
                good += 1
    except (OSError, ValueError):
        pass
    return good


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"the cache {folder.parent} cannot be written: {error.strerror or error}; what is finished is kept: mend it "
        "and run the command again, name another with --cache or give --no-cache"
    )
