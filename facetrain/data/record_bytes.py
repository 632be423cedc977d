"""The bytes of a .rec by position, read with ``pread``: a file that is cut while it is read is an error, not SIGBUS."""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path
from typing import Protocol

from facetrain.data.encoded import FileChangedError
from facetrain.data.images import Buffer
from facetrain.errors import InputError


class Bytes(Protocol):
    """What records are read from: a memoryview, or a file."""

    def __len__(self) -> int:
        """Bytes in all."""

    def __getitem__(self, part: slice, /) -> Buffer:
        """The bytes of a slice without a step; inside of 0..len."""


class FileBytes:
    """A file that stays open, as :class:`Bytes`. Safe to fork: nothing is read through a shared file position."""

    def __init__(self, path: Path, expected: str = "a RecordIO file with records") -> None:
        """Open ``path``; ``expected``: what it should be, for messages.

        Raises:
            InputError: missing, unreadable or empty.
        """
        self.path = path
        try:
            self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self.handle)
            self.size = os.fstat(self.handle).st_size
            os.pread(self.handle, 1, 0)  # a folder opens, but is not read
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}; expected {expected}") from None
        if self.size == 0:
            raise InputError(f"{path} is empty; expected {expected}")

    def __len__(self) -> int:
        """Bytes when it was opened."""
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        """The bytes of a slice inside of 0..len.

        Raises:
            FileChangedError: the file has become shorter or is gone.
            InputError: the disk cannot read this place.
        """
        start, stop, _ = part.indices(self.size)
        return self.read(max(0, stop - start), start)

    def read(self, count: int, start: int) -> bytes:
        """``count`` bytes from ``start`` on, all inside of the file; raises as ``__getitem__``."""
        try:
            found = os.pread(self.handle, count, start)
            if len(found) == count:
                return found
            while more := os.pread(self.handle, count - len(found), start + len(found)):
                found += more  # Linux reads 2 GiB at once at most
        except OSError as error:
            problem = f"{self.path} cannot be read at byte {start}: {error.strerror}"
            if error.errno == errno.EIO:
                raise InputError(f"{problem}; restore the file from a copy") from None
            raise FileChangedError(f"{problem}; see that the file system is there and start again") from None
        if len(found) == count:
            return found
        raise FileChangedError(
            f"{self.path} shrank from {self.size} to {os.fstat(self.handle).st_size} bytes while it was read; restore "
            "the file and start again"
        )
