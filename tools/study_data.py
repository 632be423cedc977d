"""The data of a study's settings: made where they are missing, refused where another command made them."""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from study_cells import Stage, argv
from study_file import Cell

from facetrain.atomic import replacing
from facetrain.errors import InputError
from facetrain.processes import StopRequest, follow

_POLL = 0.1


def check_data(work: Sequence[tuple[Cell, Sequence[Stage]]]) -> None:
    """Refuse a study whose data are not there and cannot be made, or are there but made by another command.

    Raises:
        InputError: which data.
    """
    for cell, stages in work:
        path = cell.config.data.path
        if not stages:
            continue
        if not cell.data and not path.exists():
            raise InputError(
                f"settings.{cell.setting}: {path} is not there: make it, or give the setting a line "
                "data: facetrain data ..."
            )
        before = _maker(path)
        if cell.data and before is not None and before != list(cell.data):
            raise InputError(f"{path} was made by {shlex.join(before)}: remove its folder or choose another path")


def is_missing(cell: Cell) -> bool:
    """Whether a cell's data are still to be made: not there, or their making was cut off."""
    return bool(cell.data) and (not cell.config.data.path.exists() or _begun(cell.config.data.path).exists())


def make_data(cell: Cell, stop: StopRequest, say: Callable[[str], None]) -> str | None:
    """Make a setting's data; what went wrong in words, None where nothing did or a signal ended it."""
    path = cell.config.data.path
    say(f"{cell.setting}: making its data: {shlex.join(cell.data)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _begun(path).touch()
    except OSError as error:
        return f"its data could not be made: {error.filename}: {error.strerror}"
    process = subprocess.Popen(
        argv(cell.data),
        stdout=2,  # the tables alone go to stdout
        start_new_session=True,
        preexec_fn=functools.partial(follow, os.getpid()),
    )
    while process.poll() is None and not stop.signal:
        time.sleep(_POLL)
    if stop.signal:
        process.terminate()
        process.wait()
        return None
    if process.returncode:
        _begun(path).unlink()
        with suppress(OSError):  # not empty
            path.parent.rmdir()
        return f"its data could not be made: exit code {process.returncode}"
    if not path.exists():
        return f"the command that should make its data left no {path}"
    with replacing(_record(path)) as growing:
        growing.write_text(json.dumps({"command": cell.data, "bytes": path.stat().st_size}) + "\n", encoding="utf-8")
    _begun(path).unlink()
    return None


def _maker(path: Path) -> list[str] | None:
    """The command of a study that made these data; None where none did, or something replaced them since."""
    try:
        record = json.loads(_record(path).read_text(encoding="utf-8"))
        return list(record["command"]) if record["bytes"] == path.stat().st_size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}.study.json")


def _begun(path: Path) -> Path:
    return path.with_name(f".{path.name}.study.begun")
