"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from facetrain.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write ``path`` under another name in its folder; it takes the place of ``path`` when the block has succeeded.

    The other name is unique, so that many processes, also of other machines, may write one file at once. Where the
    block raises, what it wrote is removed and ``path`` stays as it was.

    Yields:
        The name to write to; the block makes and closes that file.

    Raises:
        OSError: as the block's own, or the renaming failed.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def result_file(path: Path) -> Iterator[Path]:
    """:func:`replacing` for a file that the user asked for: its folder is made, and a disk that refuses is one line.

    Yields:
        The name to write to until the block has succeeded.

    Raises:
        InputError: an OSError in the block or around it: ``path`` cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def check_folder(folder: Path, name: str = "") -> None:
    """Refuse a folder, one that is yet to be made among them, in which no file can be written; leaves nothing behind.

    A file is made and removed in the nearest folder that is there: permissions say nothing about a read-only mount, and
    nothing to root.

    Args:
        folder: where files are to be written.
        name: what the folder is called in the message: ``output``, say.

    Raises:
        InputError: a file is in the way, or nothing can be written.
    """
    called = f"{name}: {folder}" if name else str(folder)
    try:
        nearest = next(place for place in (folder, *folder.absolute().parents) if _is_there(place))
        if not nearest.is_dir():
            found = "a file" if nearest.exists() else "a link that leads nowhere"
            raise InputError(f"{name + ': ' * bool(name)}{nearest} is {found}; expected a folder, or none yet")
        handle, probe = tempfile.mkstemp(prefix=".facetrain-", dir=nearest)
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise InputError(f"{called} cannot be written to: {error.strerror}; choose another place") from None


def check_result_file(path: Path | None, suffix: str) -> None:
    """Refuse a file to be written, before the work that it is for; None is no file and fine.

    Raises:
        InputError: another suffix, a folder that is not there, or nothing can be written there.
    """
    if path is None:
        return
    if path.suffix != suffix or not path.parent.is_dir():
        raise InputError(f"output {path} must be a{'n' * (suffix == '.npz')} {suffix} file in a folder that exists")
    if path.is_dir():
        raise InputError(f"output {path} is a folder; expected the name of a {suffix} file to write")
    check_folder(path.parent, f"output {path}")


def _is_there(place: Path) -> bool:
    """Whether anything has this name, a broken link too; OSError where no name can be like this."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
