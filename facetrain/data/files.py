"""Files that somebody's list names: read as files and nothing else, and looked for inside their folder."""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO


def open_file(path: str | Path) -> BinaryIO:
    """A regular file to read from; not a device or a pipe, which may have no end.

    Raises:
        OSError: it cannot be opened; its ``strerror`` says why.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for somebody to write
    kind = os.fstat(handle).st_mode
    if not stat.S_ISREG(kind):
        os.close(handle)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return open(handle, "rb")


def read_file(path: str | Path) -> bytes:
    """The content of a regular file; raises as :func:`open_file` does."""
    with open_file(path) as file:
        return file.read()


def look_up(folder: Path, names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Which of the named files are not there, and which a symbolic link leads out of ``folder``; a listing per folder.

    Args:
        folder: where they must lie.
        names: relative paths without ``..``.

    Returns:
        Two lists of positions in ``names``, rising.
    """
    by_parent: defaultdict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        by_parent[os.path.dirname(name)].append(i)
    missing: list[int] = []
    outside: list[int] = []
    inside = os.path.join(os.path.realpath(folder), "")
    for parent, files in by_parent.items():
        if parent and not os.path.join(os.path.realpath(folder / parent), "").startswith(inside):
            outside += files
            continue
        is_link = _entries(folder / parent)
        for i in files:
            link = is_link.get(os.path.basename(names[i]))
            if link is None:
                missing.append(i)
            elif link and not os.path.realpath(folder / names[i]).startswith(inside):
                outside.append(i)
    return sorted(missing), sorted(outside)


def _entries(folder: Path) -> dict[str, bool]:
    """What is in a folder: name -> whether it is a symbolic link; nothing where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_symlink() for entry in entries}
    except OSError:
        return {}
