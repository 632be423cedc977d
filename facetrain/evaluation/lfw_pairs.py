"""LFW's own list of pairs (View 2, ``pairs.txt``) with a folder of its photos."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.data.dataset import EXTENSIONS, PhotoFiles
from facetrain.data.files import read_file
from facetrain.errors import InputError
from facetrain.evaluation.scores import FOLDS

_NUMBER = re.compile("[0-9]{1,6}")
_LONGEST = 120
_EXPECTED = "expected LFW's pairs.txt: '10 300', then 10 times 300 lines 'NAME 1 2' and 300 lines 'NAME 1 NAME 1'"


@dataclass(frozen=True, eq=False)
class OfficialPairs:
    """2N photos of N pairs, in the list's order.

    Attributes:
        root: the folder of photos.
        files: 2N paths in it, pair i is 2i and 2i + 1.
        people: (2N,) int64, whose photo it is, 0..P-1.
        same: (N,) bool.
    """

    root: Path
    files: list[str]
    people: NDArray[np.int64]
    same: NDArray[np.bool_]

    @property
    def photos(self) -> PhotoFiles:
        """All 2N, in order."""
        return PhotoFiles(self.root, self.files, self.people)

    def distinct(self) -> tuple[PhotoFiles, NDArray[np.int64]]:
        """The photos without repetitions, and (2N,) int64, which of them each of the 2N is."""
        names, first, row = np.unique(np.array(self.files), return_index=True, return_inverse=True)
        return PhotoFiles(self.root, names.tolist(), self.people[first]), row.reshape(-1).astype(np.int64)


def read_official_pairs(path: Path, root: Path) -> OfficialPairs:
    """Read LFW's ``pairs.txt``; every photo, ``root/NAME/NAME_0001.jpg`` and so on, must be there.

    The first line says how many folds there are, ten, and how many pairs of each kind a fold has; each fold lists its
    genuine pairs (NAME, two numbers), then its impostor pairs (NAME, number, NAME, number). Aligned crops may have
    another of facetrain's image suffixes, all of them the same.

    Raises:
        InputError: one of the two is missing, a line is not what its place asks for, or photos are missing.
    """
    try:
        lines = read_file(path).decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"pair list {path} cannot be read: {reason}; {_EXPECTED}") from None
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; expected LFW's photos, {root.name}/NAME/NAME_0001.jpg")
    while lines and not lines[-1].strip():
        lines.pop()
    half = _header(path, lines)
    photos: list[tuple[str, int]] = []
    same = np.arange(2 * half * FOLDS) // half % 2 == 0
    for at, (line, genuine) in enumerate(zip(lines[1:], same.tolist(), strict=True), start=2):
        fold = (at - 2) // (2 * half) + 1
        photos += _pair(
            line, genuine, f"{path}:{at}", f"fold {fold} has {half} genuine pairs, then {half} impostor ones"
        )
    people = np.unique([name for name, _ in photos], return_inverse=True)[1]
    suffix = next((end for end in EXTENSIONS if (root / _file(*photos[0], end)).is_file()), ".jpg")
    files = [_file(name, number, suffix) for name, number in photos]
    missing = [i for i, file in enumerate(files) if not (root / file).is_file()]
    if missing:
        count = len({files[i] for i in missing})
        raise InputError(
            f"{count} of {len(set(files))} photos are not in {root}, the first: {files[missing[0]]} "
            f"({path.name}:{missing[0] // 2 + 2}); expected NAME/NAME_0001{suffix}"
        )
    return OfficialPairs(root, files, people.reshape(-1).astype(np.int64), same)


def _header(path: Path, lines: list[str]) -> int:
    """Pairs of each kind a fold, from the first line, which must fit the number of lines."""
    words = lines[0].split() if lines else []
    if len(words) != 2 or not all(map(_NUMBER.fullmatch, words)) or int(words[0]) != FOLDS or not int(words[1]):
        raise InputError(f"{path}:1: {' '.join(words)[:40]!r} are not ten folds and their pairs; {_EXPECTED}")
    half = int(words[1])
    if len(lines) - 1 != 2 * half * FOLDS:
        raise InputError(
            f"{path} holds {len(lines) - 1} pairs and its first line promises {FOLDS} x 2 x {half} = "
            f"{2 * half * FOLDS}; take the whole list"
        )
    return half


def _pair(line: str, genuine: bool, where: str, rule: str) -> list[tuple[str, int]]:
    words = [word.strip() for word in line.rstrip().split("\t")] if "\t" in line else line.split()
    if len(words) != (3 if genuine else 4):
        kind = "a genuine one, NAME 1 2" if genuine else "an impostor one, NAME 1 NAME 1"
        raise InputError(f"{where}: {len(words)} columns where {kind}, is expected: {rule}")
    pair = [(words[0], words[1]), (words[0] if genuine else words[2], words[-1])]
    for name, number in pair:
        if not 0 < len(name) <= _LONGEST or name in (".", "..") or set(name) & set("/\\\0"):
            raise InputError(f"{where}: {name[:40]!r} is not a person's name, the name of a folder of photos")
        if not _NUMBER.fullmatch(number):
            raise InputError(f"{where}: {number[:40]!r} is not the number of a photo")
    if not genuine and pair[0][0] == pair[1][0]:
        raise InputError(f"{where}: an impostor pair of two photos of {words[0][:40]}; take the original list")
    return [(name, int(number)) for name, number in pair]


def _file(name: str, number: int, suffix: str) -> str:
    return f"{name}/{name}_{number:04d}{suffix}"
