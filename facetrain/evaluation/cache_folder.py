"""The folder of cached embeddings: where it is, what it holds, how it is cleared."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from facetrain.errors import InputError
from facetrain.evaluation.embedding_cache import LOCK, ROWS, STATE, Key, try_lock, whole_number
from facetrain.strictyaml import one_line

_ENTRY = re.compile("[0-9a-f]{32}")


def cache_folder(wanted: Path | None, off: bool = False) -> Path | None:
    """Where embeddings are kept: the folder asked for, facetrain's own, or None where it is off.

    facetrain's own is ``facetrain/embeddings`` under ``$XDG_CACHE_HOME`` or ``~/.cache``; where nothing can be written
    there (a container without a home, say) embeddings are not kept either.

    Raises:
        InputError: a folder is asked for, and that it be off.
    """
    if wanted is not None and off:
        raise InputError(f"--cache {wanted} and --no-cache exclude each other; give one of them")
    if off or wanted is not None:
        return wanted
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    there = home / "facetrain" / "embeddings"
    nearest = next(folder for folder in (there, *there.absolute().parents) if folder.exists())
    return there if os.access(nearest, os.W_OK | os.X_OK) else None


@dataclass(frozen=True)
class Kept:
    """What a cache holds of one model and one set of images.

    Its folder, bytes on the disk, when it was written last (local time), and what it says.
    """

    folder: Path
    size: int
    written: datetime
    text: str


def kept(cache: Path) -> list[Kept]:
    """The entries of a cache, oldest first, unverified."""
    found = []
    for folder in (path for path in cache.glob("*") if _ENTRY.fullmatch(path.name) and path.is_dir()):
        with suppress(OSError):
            files = [file.stat() for file in folder.iterdir()]
            size = sum(file.st_blocks * 512 for file in files)
            newest = max((file.st_mtime for file in files), default=0.0)
            written = datetime.fromtimestamp(newest)
            found.append((newest, folder.name, Kept(folder, size, written, _described(folder))))
    return [one for *_, one in sorted(found, key=lambda each: each[:2])]


def clear(cache: Path) -> list[Kept]:
    """Remove the entries of a cache that no process is using, and nothing else; what was removed.

    Raises:
        InputError: an entry cannot be removed.
    """
    removed = []
    for one in kept(cache):
        try:
            lock = try_lock(one.folder)
            if lock is None:
                continue
            with lock:
                for file in (*one.folder.glob(".*.tmp"), *(one.folder / name for name in (ROWS, STATE, LOCK))):
                    file.unlink(missing_ok=True)
                with suppress(OSError):  # somebody put a file of theirs there
                    one.folder.rmdir()
        except OSError as error:
            raise InputError(f"the cache's entry {one.folder} cannot be removed: {error.strerror}") from None
        removed.append(one)
    return removed


def _described(folder: Path) -> str:
    """An entry in a few words, for people: which model, how many images of how many, from where."""
    try:
        record: Any = json.loads((folder / STATE).read_text(encoding="utf-8"))
        key = Key(**record["key"])
        done = sum(whole_number(rows) for rows, _ in record["finished"])
        first = f", the first {one_line(str(record['first']))}" if record.get("first") else ""
        share = f"{key.count:,} images" if done == key.count else f"{done:,} of {key.count:,} images so far"
        images = f"{share}{first}, {'flip' if key.flip else 'no flip'}"
        return f"{record['model_name']} ({key.model[:16]}), {images}, {key.device}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "nothing that can be read"
