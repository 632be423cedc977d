"""Text files of the IJB meta folder, read fast and strictly: a wrong line is refused by its number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import InputError

_BLOCK = 1 << 23  # bytes read at once
_DIGITS = 9  # a number of more digits may not fit an int32
_BLANK = np.zeros(256, np.bool_)
_BLANK[[9, 10, 13, 32]] = True  # tab, newline, carriage return, space


def whole_numbers(path: Path, columns: int, expected: str) -> NDArray[np.int32]:
    """A text file of whole numbers up to nine digits, so many on every line, separated by blanks.

    Args:
        path: the file.
        columns: numbers on a line.
        expected: a line's form, for messages: ``TEMPLATE TEMPLATE 0|1``.

    Returns:
        (lines, columns) int32.

    Raises:
        InputError: missing, empty, or a line is anything else; names the line.
    """
    parts = [_numbers_of(data, columns, expected, path, line) for data, line in blocks(path, expected)]
    return np.concatenate(parts)


def lines_of(path: Path, expected: str) -> Iterator[tuple[list[bytes], int]]:
    """(lines without their end, number of the first) a block at a time; empty lines at the end of the file left out.

    Raises:
        InputError: missing or empty.
    """
    for data, line in blocks(path, expected):
        yield data.removesuffix(b"\n").split(b"\n"), line


def blocks(path: Path, expected: str) -> Iterator[tuple[bytes, int]]:
    """Whole lines of a file, each ended by a newline, about 8 MiB at a time, and the number of their first line.

    Raises:
        InputError: the file is missing, cannot be read, or is empty.
    """
    line, rest = 1, b""
    try:
        with path.open("rb") as file:
            while data := file.read(_BLOCK):
                end = data.rfind(b"\n") + 1
                whole, rest = (rest + data[:end], data[end:]) if end else (b"", rest + data)
                if whole:
                    yield whole, line
                    line += whole.count(b"\n")
    except OSError as error:
        raise missing(path, error.strerror or str(error), expected) from None
    if rest.strip():
        yield rest + b"\n", line
    elif line == 1:
        raise missing(path, "it is empty", expected)


def missing(path: Path, why: str, expected: str) -> InputError:
    """The one line about a meta file that cannot be used as a whole."""
    return InputError(f"{path} cannot be read: {why}; expected a text file with lines of the form {expected}")


def wrong_line(path: Path, line: int, text: bytes, expected: str) -> InputError:
    """The one line about a line."""
    shown = ascii(text[:60].decode("utf-8", "backslashreplace").strip())
    return InputError(f"{path}:{line}: {shown}; expected {expected}")


def _numbers_of(data: bytes, columns: int, expected: str, path: Path, line: int) -> NDArray[np.int32]:
    """The numbers of whole lines."""
    text = np.frombuffer(data, np.uint8)
    digit = (text - 48) < 10  # what lies below "0" wraps round
    edges = np.flatnonzero(digit[1:] != digit[:-1]) + 1
    if digit[0]:
        edges = np.concatenate(([0], edges))
    newlines = np.flatnonzero(text == 10)
    starts, ends = edges[0::2], edges[1::2]  # the last byte is a newline, so every number has an end
    if len(starts) == columns * len(newlines) and (digit | _BLANK[text]).all() and (ends - starts).max() <= _DIGITS:
        first, last = starts[0::columns], ends[columns - 1 :: columns]
        if (last <= newlines).all() and (first[1:] > newlines[:-1]).all():
            return _values(text, starts, ends).reshape(-1, columns)
    for number, row in enumerate(data.split(b"\n"), start=line):
        words = row.split()
        if len(words) != columns or not all(word.isdigit() and len(word) <= _DIGITS for word in words):
            raise wrong_line(path, number, row, f"{expected}, whole numbers of at most {_DIGITS} digits")
    raise AssertionError("a block was refused and none of its lines")


def _values(text: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int32]:
    lengths = (ends - starts).astype(np.uint8)
    values, place = np.zeros(len(starts), np.int32), ends.copy()
    for power in range(int(lengths.max())):
        place -= 1
        digit = text.take(place, mode="clip") - 48
        digit *= lengths > power  # a shorter number has something else there
        values += digit * np.int32(10**power)
    return values
