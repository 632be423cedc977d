"""``train.crc32`` beside a .rec: a CRC-32 of every record, so that a flipped bit is damage and not another picture.

Decoders notice few of them: of single flipped bits in a JPEG three quarters give other pixels without an error. The
file is a header of 64 bytes (``facetrain crc32``, version, size of the .rec, number of records, first record number,
whether numbers follow), then a u32 a record by rising record number, then, where the numbers are not consecutive, those
as i32, then the CRC-32 of all before it; little-endian. A record is taken as it lies in the .rec, from its magic to the
zeros behind it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.data.images import Buffer
from facetrain.data.record_bytes import FileBytes
from facetrain.data.record_format import RecordError
from facetrain.errors import InputError

_HEADER = struct.Struct("<16sIQQqI16x")
_MAGIC, _VERSION = b"facetrain crc32\n", 1
_BLOCK = 1 << 20
_AGAIN = "make it anew with 'facetrain data checksum --force', or remove it"


def checksum_path(rec: Path) -> Path:
    """The .crc32 that belongs to a .rec."""
    return rec.with_suffix(".crc32")


class Checksums:
    """The checksums of a .rec, read one by one: no memory where record numbers are consecutive, else 4 bytes each."""

    def __init__(self, rec: Path, size: int) -> None:
        """Open the file beside ``rec``, which has ``size`` bytes.

        Raises:
            InputError: it is damaged, or of a .rec of another size.
        """
        self.path = checksum_path(rec)
        self._file = FileBytes(self.path, "the checksums that 'facetrain data checksum' writes")
        head = self._file[: _HEADER.size].ljust(_HEADER.size, b"\0")
        magic, version, of_size, self.count, self._first, has_numbers = _HEADER.unpack(head)
        end = _HEADER.size + (8 if has_numbers else 4) * self.count
        if (magic, version, end + 4) != (_MAGIC, _VERSION, len(self._file)) or not self._is_whole(end):
            raise InputError(f"{self.path} is damaged or not what 'facetrain data checksum' writes; {_AGAIN}")
        if of_size != size:
            raise InputError(
                f"{self.path} belongs to another {rec.name}, of {of_size} bytes, and this one has {size}; {_AGAIN}"
            )
        self._numbers: NDArray[np.int32] | None = None
        if has_numbers:
            self._numbers = np.frombuffer(self._file[_HEADER.size + 4 * self.count : end], "<i4")

    def _is_whole(self, end: int) -> bool:
        crc = 0
        for start in range(0, end, _BLOCK):
            crc = zlib.crc32(self._file[start : min(start + _BLOCK, end)], crc)
        return self._file[end : end + 4] == crc.to_bytes(4, "little")

    def verify(self, number: int, record: Buffer, byte: int) -> None:
        """Compare record ``number``, which lies at ``byte`` of the .rec.

        Raises:
            RecordError: its checksum is another one, or none is known.
        """
        row = number - self._first
        if self._numbers is not None:
            row = int(np.searchsorted(self._numbers, number))
        if not 0 <= row < self.count or (self._numbers is not None and self._numbers[row] != number):
            raise RecordError(byte, f"{self.path.name} has no checksum of it")
        if self._file.read(4, _HEADER.size + 4 * row) != zlib.crc32(record).to_bytes(4, "little"):
            raise RecordError(byte, f"its bytes are not those that {self.path.name} was made of")


def find_checksums(rec: Path, size: int) -> Checksums | None:
    """The checksums of ``rec``, which has ``size`` bytes; None where there are none.

    Raises:
        InputError: they are damaged, or of another .rec.
    """
    return Checksums(rec, size) if checksum_path(rec).exists() else None


def encode_checksums(size: int, crcs: Sequence[int], numbers: ArrayLike | None = None) -> bytes:
    """The bytes of a .crc32.

    Args:
        size: bytes of the .rec.
        crcs: (R,) of its records, by rising record number.
        numbers: (R,) record numbers, rising; None: 0, 1, ...
    """
    keys = None if numbers is None else np.asarray(numbers, "<i4")
    first = 0 if keys is None or not len(keys) else int(keys[0])
    if keys is not None and int(keys[-1]) - first == len(keys) - 1:
        keys = None
    header = _HEADER.pack(_MAGIC, _VERSION, size, len(crcs), first, keys is not None)
    whole = header + np.asarray(crcs, "<u4").tobytes() + (b"" if keys is None else keys.tobytes())
    return whole + zlib.crc32(whole).to_bytes(4, "little")
