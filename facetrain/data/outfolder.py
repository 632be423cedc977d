"""The folder that a data set is written to: what belongs to a set there, and what an older set leaves behind."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from facetrain.atomic import check_folder
from facetrain.errors import InputError

TRAIN = "train.rec"
HELD_OUT = "heldout"
_SET = (TRAIN, "train.idx", "train.crc32", "property", "names.txt")
# What says something about the training set beside it, whichever command wrote it.
_SIDECARS = (
    "train.crc32",
    "names.txt",
    "classes.csv",
    "heldout.bin",
    "head.bin",
    "tail.bin",
    *(f"{HELD_OUT}/{name}" for name in (*_SET, "train.index.npy")),
)


def check_room(out: Path, overwrite: bool) -> None:
    """Refuse a folder that cannot be written to, or that holds a data set or a part of one without ``overwrite``.

    Raises:
        InputError: ``out`` or a folder above it is a file, or a set is there already.
    """
    check_folder(out)
    there = [out / name for name in (TRAIN, "property", *_SIDECARS) if (out / name).exists()]
    if there and not overwrite:
        raise InputError(f"{there[0]} is there already: choose another folder, or replace it with --force")


def check_apart(folder: Path, out: Path) -> None:
    """Refuse to write into what is read: ``folder`` and ``out`` are one, or one lies in the other.

    Raises:
        InputError: they do.
    """
    source, target = folder.resolve(), out.resolve()
    if source == target:
        raise InputError(f"{out} is the folder that is read; choose another one to write to")
    if source in target.parents or target in source.parents:
        raise InputError(f"{out} and {folder} lie one in the other; choose a folder to write to beside the photos")


def clear_sidecars(out: Path) -> None:
    """Remove what would say wrong things about a new training set; for just before that one gets its name."""
    for name in _SIDECARS:
        (out / name).unlink(missing_ok=True)
    with suppress(OSError):  # not there, or the user keeps something in it
        (out / HELD_OUT).rmdir()
