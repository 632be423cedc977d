"""Disks that fail at the i-th thing asked of them, and processes that die there."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from facetrain.checkpoints import backbones

KILL, EIO, ENOSPC = "kill", errno.EIO, errno.ENOSPC
KILLED = 9
"""Exit code of a process that died on purpose."""
_ON_NAMES = ("fsync", "replace", "rename", "unlink", "remove", "rmdir", "mkdir")


class Disk:
    """Counts what is asked of the disk, and fails at one of it.

    Attributes:
        asked: operations so far: writes, fsyncs, renames, removals, new folders.
    """

    def __init__(self, at: int | None = None, fault: str | int = EIO) -> None:
        """Fail at operation ``at``, counted from 0, with an errno or by dying; None: never."""
        self.at, self.fault, self.asked = at, fault, 0

    @property
    def failed(self) -> bool:
        """Whether it came to that."""
        return self.at is not None and self.asked > self.at

    def _due(self) -> bool:
        self.asked += 1
        return self.asked - 1 == self.at

    def _fail(self, what: Any) -> OSError:
        if self.fault == KILL:
            sys.stderr.flush()
            os._exit(KILLED)
        assert isinstance(self.fault, int)
        return OSError(self.fault, os.strerror(self.fault), str(what))

    def on_name(self, real: Any) -> Any:
        """A function of ``os`` that fails before it has done anything."""

        def asked(what: Any, *args: Any, **kwargs: Any) -> Any:
            if self._due():
                raise self._fail(what)
            return real(what, *args, **kwargs)

        return asked

    def save_file(self, tensors: Any, file: Path, described: Any) -> None:
        """safetensors' function, which fails with half of the file written."""
        due = self._due()
        _save_file(tensors, file, described)
        if due:
            os.truncate(file, file.stat().st_size // 2)
            error = self._fail(file)
            raise SafetensorError(f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})")

    def open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        """``io.open``, with which pathlib opens; what is written there fails in the middle."""
        handle = _open(file, mode, *args, **kwargs)
        if "w" in mode:
            write = handle.write

            def half(content: Any) -> int:
                if self._due():
                    write(content[: len(content) // 2])
                    handle.flush()
                    raise self._fail(file)
                return write(content)

            handle.write = half
        return handle


_save_file, _open, _os = backbones.save_file, io.open, {name: getattr(os, name) for name in _ON_NAMES}


@contextmanager
def disk(at: int | None = None, fault: str | int = EIO) -> Iterator[Disk]:
    """This process's disk, failing as :class:`Disk` says, until the block ends."""
    made = Disk(at, fault)
    backbones.save_file, io.open = made.save_file, made.open
    for name, real in _os.items():
        setattr(os, name, made.on_name(real))
    try:
        yield made
    finally:
        backbones.save_file, io.open = _save_file, _open
        for name, real in _os.items():
            setattr(os, name, real)
