"""Files that are there whole or not at all."""

from __future__ import annotations

import os
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
