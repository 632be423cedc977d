"""The class of every record of a .rec, read from the records' headers in blocks of NumPy operations.

Only multi-part and damaged records take a slow path.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.data.progress import progress
from facetrain.data.record_bytes import FileBytes
from facetrain.data.record_format import EXACT, MAGIC, MAX_LENGTH, PART, RecordError, damaged, parse_image, read_record
from facetrain.errors import InputError

RECORD_BLOCK = 1 << 15
WINDOW = 1 << 18  # bytes that are read at once
LONG = 3_000_000  # images whose first reading takes long enough for a line of progress
_HEAD = 36
_WORDS = np.array([0, 1, 2, 3, 8])
"""Of a record's first 36 bytes: magic, part flag and length, number of vector labels, label, first vector label."""


def read_labels(
    path: Path, file: FileBytes, numbers: NDArray[np.int32], offsets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(N,) int64, the first label of the records at ``offsets``, (N,) bytes of the file, at most its size - 8.

    Raises:
        InputError: a record is damaged or its label is no class; names it by ``path`` and ``numbers``.
    """
    labels = np.empty(len(offsets), np.int64)
    with progress("reading", len(offsets), least=LONG) as advance:
        for start in range(0, len(offsets), RECORD_BLOCK):
            rows = slice(start, start + RECORD_BLOCK)
            values, plain = _plain_labels(_heads(file, offsets[rows]), len(file), offsets[rows])
            for row in np.flatnonzero(~plain).tolist():
                offset = int(offsets[start + row])
                try:
                    values[row] = parse_image(read_record(file, offset)[0], offset).labels[0]
                except RecordError as error:
                    raise damaged(path, int(numbers[start + row]), error) from None
            with np.errstate(invalid="ignore"):  # NaN compares false
                right = (values >= 0) & (values <= EXACT) & (values == np.floor(values))
            if not right.all():
                row = int(np.argmin(right))
                number, offset = numbers[start + row], offsets[start + row]
                raise InputError(
                    f"{path} record {number} at byte {offset}: label {values[row]:.9g}; expected a class 0..{EXACT}"
                )
            labels[rows] = values
            advance(len(values))
    return labels


def _heads(file: FileBytes, offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
    """(n, 5) the ``_WORDS`` of the records at ``offsets``; of those that are not aligned or cut off, any numbers."""
    size, count = len(file), len(offsets)
    if not (offsets[1:] > offsets[:-1]).all():
        heads = b"".join(file[int(at) : min(int(at) + _HEAD, size)].ljust(_HEAD, b"\0") for at in offsets)
        return np.frombuffer(heads, "<u4").reshape(count, -1)[:, _WORDS]
    found = np.empty((count, len(_WORDS)), np.uint32)
    row = 0
    while row < count:
        # What lies between the headers is read too: a disk that reads on is faster than one that jumps.
        base = int(offsets[row]) & ~3
        end = int(np.searchsorted(offsets, base + WINDOW))
        window = file[base : min(int(offsets[end - 1]) + _HEAD, size)]
        words = np.frombuffer(window, "<u4", count=len(window) // 4)
        at = (offsets[row:end, None] - base >> 2) + _WORDS
        found[row:end] = words[np.minimum(at, len(words) - 1)]
        row = end
    return found


def _plain_labels(
    heads: NDArray[np.uint32], size: int, offsets: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """First labels and which rows are whole, aligned, undamaged records, so that their label is right."""
    magic, part = heads[:, 0], heads[:, 1]
    flag = heads[:, 2].astype(np.int64)
    length = (part & MAX_LENGTH).astype(np.int64)
    plain = (magic == MAGIC) & (part >> 29 == 0) & (offsets & 3 == 0)
    plain &= (offsets + PART.size + (length + 3 & ~3) <= size) & (length >= 24 + 4 * flag)
    floats = heads.view("<f4")
    return np.where(flag > 0, floats[:, 4], floats[:, 3]), plain
