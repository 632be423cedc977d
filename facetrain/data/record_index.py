"""From a .rec and its text .idx to arrays: where each image lies and which class it has.

The .idx is parsed in blocks of NumPy operations, within 24 bytes a record (32 where insightface's .idx is out of
order). :mod:`facetrain.data.record_cache` keeps the result, so this happens once per data set.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facetrain.data.checksums import find_checksums
from facetrain.data.files import open_file
from facetrain.data.record_bytes import FileBytes
from facetrain.data.record_format import EXACT, PART, ImageRecord, RecordError, damaged, parse_image, read_record
from facetrain.data.record_labels import read_labels
from facetrain.errors import InputError

TEXT_BLOCK = 1 << 20
MAX_NUMBER = 2**31 - 1
_LINE = re.compile(rb"[0-9]{1,10}\t[0-9]{1,18}\r?")


class Index(NamedTuple):
    """The images of a .rec, in the order in which the data set numbers them."""

    offsets: NDArray[np.int64]
    """(N,) byte of the file where each image's record starts."""
    labels: NDArray[np.int64]
    """(N,) class of each image."""
    numbers: NDArray[np.int32] | None
    """(N,) record numbers (keys of the .idx), or None where they are ``first_number + i``."""
    first_number: int
    identities: int
    """Identities that record 0 counts; 0 where there is no such record."""

    def number(self, i: int) -> int:
        """The record number of image ``i``."""
        return self.first_number + i if self.numbers is None else int(self.numbers[i])


def index_path(path: Path) -> Path:
    """The .idx that belongs to a .rec."""
    return path.with_suffix(".idx")


def read_index_text(path: Path) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Record numbers and byte offsets, (R,) each, in the order of the lines of an .idx.

    Raises:
        InputError: missing, empty, or a line that is not ``number<TAB>offset``; names the line.
    """
    row, rest = 0, b""
    try:
        with open_file(path) as file:
            count = _count_lines(file)
            numbers, offsets = np.empty(count, np.int32), np.empty(count, np.int64)
            while block := file.read(TEXT_BLOCK):
                text = rest + block
                cut = text.rfind(b"\n") + 1
                rest = text[cut:]
                if len(rest) > 64:
                    raise _bad_line(path, text[:cut] + rest, row + 1)
                if cut:
                    row = _fill(path, text[:cut], row, numbers, offsets)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; expected the index of {path.with_suffix('.rec').name} beside it"
        ) from None
    if rest:
        row = _fill(path, rest + b"\n", row, numbers, offsets)
    if row == 0:
        raise InputError(f"{path} is empty; expected a line 'number<TAB>byte' for every record")
    return numbers[:row], offsets[:row]


def _count_lines(file: BinaryIO) -> int:
    """Lines of a file, the last one too where it has no end; the file is at its start afterwards."""
    count, last = 0, b"\n"
    while block := file.read(TEXT_BLOCK):
        count += block.count(b"\n")
        last = block[-1:]
    file.seek(0)
    return count + (last != b"\n")


def _fill(path: Path, text: bytes, row: int, numbers: NDArray[np.int32], offsets: NDArray[np.int64]) -> int:
    """Parse whole lines into the arrays from ``row`` on; the row behind them."""
    columns = _parse_lines(path, text, row + 1)
    end = row + columns.shape[1]
    if end > len(numbers):
        raise InputError(f"{path} changed while it was read; try again when nothing writes to it")
    numbers[row:end], offsets[row:end] = columns
    return end


def _parse_lines(path: Path, text: bytes, first_line: int) -> NDArray[np.int64]:
    """(2, n) record numbers and offsets of whole lines."""
    text = text.replace(b"\r\n", b"\n")
    columns = _parse_even(text)
    if columns is None:
        columns = _parse_uneven(path, text, first_line)
    if columns[0].max() > MAX_NUMBER:
        row = int(np.argmax(columns[0] > MAX_NUMBER))
        raise InputError(f"{path} line {first_line + row}: record number {columns[0, row]} exceeds {MAX_NUMBER}")
    return columns


def _parse_even(text: bytes) -> NDArray[np.int64] | None:
    """Lines with tab and end in the same places, digit by digit over all lines at once; None where they are others.

    Nearly all blocks of a sorted .idx are so. It takes a fifth of the time.
    """
    tab, end = text.find(b"\t"), text.find(b"\n")
    if not 1 <= tab <= 10 or not 1 <= end - tab - 1 <= 18 or len(text) % (end + 1):
        return None
    places = np.ascontiguousarray(np.frombuffer(text, np.uint8).reshape(-1, end + 1).T)  # (end + 1, n)
    if (places[tab] != 9).any() or (places[end] != 10).any():
        return None
    values = np.zeros((2, places.shape[1]), np.int64)
    for value, digits in zip(values, (places[:tab], places[tab + 1 : end]), strict=True):
        for digit in digits - np.uint8(48):
            if digit.max() > 9:
                return None
            value *= 10
            value += digit
    return values


def _parse_uneven(path: Path, text: bytes, first_line: int) -> NDArray[np.int64]:
    codes = np.frombuffer(text, np.uint8)
    tabs, ends = np.flatnonzero(codes == 9), np.flatnonzero(codes == 10)
    digits = np.count_nonzero((codes >= 48) & (codes <= 57))
    if len(tabs) != len(ends) or digits + len(tabs) + len(ends) != len(codes):
        raise _bad_line(path, text, first_line)
    starts = np.concatenate(([0], ends[:-1] + 1))
    left, right = tabs - starts, ends - tabs - 1
    if left.min() < 1 or left.max() > 10 or right.min() < 1 or right.max() > 18:
        raise _bad_line(path, text, first_line)
    # Checked above to be digits and separators alone, so the parser cannot stop early.
    return np.fromstring(text, np.int64, sep=" ").reshape(-1, 2).T


def _bad_line(path: Path, text: bytes, first_line: int) -> InputError:
    for row, line in enumerate(text.split(b"\n")):
        if not _LINE.fullmatch(line):
            shown = line[:40].decode("ascii", "backslashreplace")
            return InputError(
                f"{path} line {first_line + row}: {shown!r} is not 'number<TAB>byte'; restore the file or pack it again"
            )
    raise AssertionError("every line is right")


def build_index(path: Path) -> Index:
    """Read the .idx and every record's header; of many images with a line of progress on stderr.

    Raises:
        InputError: damaged or inconsistent; names the line, or the record and its byte.
    """
    file = FileBytes(path)
    numbers, offsets = read_index_text(index_path(path))
    if offsets.max() > len(file) - PART.size:
        row = int(np.argmax(offsets > len(file) - PART.size))
        raise InputError(
            f"{index_path(path)} line {row + 1}: record {numbers[row]} at byte {offsets[row]} lies past the end of "
            f"{path.name}, which has {len(file)} bytes; restore the file or pack it again"
        )
    last = int(offsets.argmax())
    try:  # a file that was cut off after its images: what its identity records say is not read below
        read_record(file, int(offsets[last]))
    except RecordError as error:
        raise damaged(path, int(numbers[last]), error) from None
    rising = bool((numbers[1:] > numbers[:-1]).all())
    if not rising:
        _refuse_twice(index_path(path), numbers)
    end, identities = _image_range(path, file, numbers, offsets)
    if end:
        if not rising:
            order = np.argsort(numbers)
            numbers = numbers[order]  # one after the other, for the memory
            offsets = offsets[order]
            rising = True
            del order
        numbers, offsets = numbers[1:end], offsets[1:end]
    if len(numbers) == 0:
        raise InputError(f"{path} holds no image; expected at least one")
    labels = read_labels(path, file, numbers, offsets)
    first_number = int(numbers[0])
    consecutive = rising and int(numbers[-1]) - first_number == len(numbers) - 1
    return Index(offsets, labels, None if consecutive else numbers, first_number, identities)


def _refuse_twice(path: Path, numbers: NDArray[np.int32]) -> None:
    """InputError where a record number is there twice."""
    ordered = np.sort(numbers)
    twice = ordered[1:] == ordered[:-1]
    if twice.any():
        number = ordered[int(np.argmax(twice))]
        a, b = np.flatnonzero(numbers == number)[:2]
        raise InputError(f"{path} line {b + 1}: record {number} is there twice, first on line {a + 1}; pack it again")


def _image_range(
    path: Path, file: FileBytes, numbers: NDArray[np.int32], offsets: NDArray[np.int64]
) -> tuple[int, int]:
    """From record 0: the number behind the last image, images being 1, 2, ..., and the count of identities.

    (0, 0) where record 0 is an image itself or missing. A header has a vector of labels (first identity record, end)
    and no image: a file of im2rec with vector labels has a flag > 0 in record 0 too, but an image behind it.
    """

    checksums = find_checksums(path, len(file))

    def read(number: int) -> ImageRecord:
        row = int(np.argmax(numbers == number))
        if numbers[row] != number:
            raise InputError(f"{index_path(path)} has no record {number}, which record 0 of {path.name} counts on")
        offset = int(offsets[row])
        try:
            payload, end = read_record(file, offset)
            if checksums is not None:
                checksums.verify(number, file[offset:end], offset)
            return parse_image(payload, offset)
        except RecordError as error:
            raise damaged(path, number, error) from None

    if numbers.min() != 0:
        return 0, 0
    header = read(0)
    if header.flag < 2 or len(header.payload):
        return 0, 0
    first, end = header.labels[:2]
    total = int(numbers.max()) + 1
    if not (
        first >= 1 and end >= first and first % 1 == 0 and end % 1 == 0 and first <= total + 4 and end <= total + 4
    ):
        place = int(offsets[np.argmin(numbers)])
        raise damaged(path, 0, RecordError(place, f"identity records {first:g}..{end:g} of {total} records in all"))
    first, end = int(first), int(end)
    if first > EXACT:  # rounded to a multiple of 2 or 4 by float32: look for the first record without an image
        near = range(first - 4, min(first + 5, total))
        first = next((n for n in near if (r := read(n)).flag > 0 and not len(r.payload)), total)
    end = total if end > EXACT else end
    if end > total or np.count_nonzero(numbers < first) < first:
        there = np.zeros(len(numbers) + 1, np.bool_)
        there[numbers[numbers < len(there)]] = True
        number = int(np.argmin(there))
        raise InputError(f"{index_path(path)} has no record {number}, which record 0 of {path.name} counts on")
    return first, end - first
