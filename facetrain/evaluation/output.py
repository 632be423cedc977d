"""Result files: whole or not at all, and one line where the disk refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facetrain.atomic import replacing
from facetrain.errors import InputError


@contextmanager
def result_file(path: Path) -> Iterator[Path]:
    """:func:`facetrain.atomic.replacing` in a folder that is made where it is missing.

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
