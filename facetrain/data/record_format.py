"""The bytes of a RecordIO file: framing, multi-part records and the image header.

A record is one or more parts; a part is ``u32 magic, u32 flag << 29 | length, payload, zeros up to a multiple of 4``,
little-endian. Flag 0 is a whole record; a payload that holds the magic at a multiple of 4 is cut there into a first
(1), middle (2) and last (3) part, and the reader puts the magic back between them. So a scan for the magic always finds
the start of a part. The payload of an image is a header ``u32 flag, f32 label, u64 id, u64 id2``, then ``flag`` float32
labels which replace ``label`` where flag > 0, then the encoded image. (dmlc-core's recordio.h, mxnet's recordio.py.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from facetrain.errors import InputError

if TYPE_CHECKING:
    from facetrain.data.images import Buffer
    from facetrain.data.record_bytes import Bytes

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
WHOLE, FIRST, MIDDLE, LAST = range(4)
MAX_LENGTH = (1 << 29) - 1
PART = struct.Struct("<II")
IMAGE = struct.Struct("<IfQQ")
HEAD = struct.Struct("<III20x")
"""Both at the start of a record of one part: magic, length, number of vector labels."""
# float32 counts every integer up to here; beyond it labels and record numbers are rounded.
EXACT = 1 << 24


class RecordError(ValueError):
    """A damaged record: the byte of the file and what is wrong there. Callers add the file's name and record number."""

    def __init__(self, byte: int, problem: str) -> None:
        super().__init__(problem)
        self.byte = byte
        self.problem = problem


def damaged(path: Path, number: int, error: RecordError) -> InputError:
    """The error that names file, record and byte."""
    return InputError(
        f"{path} record {number} at byte {error.byte}: {error.problem}; restore the file or pack it again"
    )


class ImageRecord(NamedTuple):
    """A record's image header and encoded image."""

    flag: int
    """Number of vector labels; 0 means that ``labels`` holds the header's single one."""
    labels: tuple[float, ...]
    payload: Buffer


def read_record(file: Bytes, offset: int) -> tuple[Buffer, int]:
    """The payload of the record at ``offset`` and the byte where the next record starts.

    The payload is a slice of ``file``, or a new ``bytes`` for a multi-part record.

    Raises:
        RecordError: no record of right framing starts at ``offset`` or it runs past the end of the file.
    """
    flag, payload, end = _read_part(file, offset)
    if flag == WHOLE:
        return payload, end
    if flag != FIRST:
        raise RecordError(offset, f"part flag {flag} where a record starts; expected 0 (whole) or 1 (first part)")
    parts = [payload]
    while flag != LAST:
        start = end
        flag, payload, end = _read_part(file, start)
        if flag not in (MIDDLE, LAST):
            raise RecordError(start, f"part flag {flag} inside a multi-part record; expected 2 (middle) or 3 (last)")
        parts.append(payload)
    return MAGIC_BYTES.join(parts), end


def _read_part(file: Bytes, offset: int) -> tuple[int, Buffer, int]:
    size = len(file)
    if not 0 <= offset <= size - PART.size:
        raise RecordError(offset, f"a record header of 8 bytes is cut off: the file ends at byte {size}")
    magic, word = PART.unpack(file[offset : offset + PART.size])
    if magic != MAGIC:
        raise RecordError(offset, f"bad magic 0x{magic:08x}; expected 0x{MAGIC:08x}")
    length = word & MAX_LENGTH
    start = offset + PART.size
    end = start + (length + 3 & ~3)
    if end > size:
        raise RecordError(offset, f"a payload of {length} bytes is cut off: the file ends at byte {size}")
    return word >> 29, file[start : start + length], end


def parse_image(payload: Buffer, offset: int) -> ImageRecord:
    """Split a record's payload into labels and image; ``offset`` is the record's byte, for the error.

    Raises:
        RecordError: shorter than its header says.
    """
    if len(payload) < IMAGE.size:
        raise RecordError(offset, f"{len(payload)} bytes are too few for an image header of {IMAGE.size}")
    flag, label, _, _ = IMAGE.unpack_from(payload)
    if flag == 0:
        return ImageRecord(0, (label,), payload[IMAGE.size :])
    start = IMAGE.size + 4 * flag
    if len(payload) < start:
        raise RecordError(offset, f"{flag} labels do not fit a payload of {len(payload)} bytes")
    return ImageRecord(flag, struct.unpack_from(f"<{flag}f", payload, IMAGE.size), payload[start:])


def image_payload(label: float | Sequence[float], number: int, encoded: Buffer = b"") -> bytes:
    """The payload of an image or identity record; a sequence of labels is written as a vector."""
    if isinstance(label, Sequence):
        header = IMAGE.pack(len(label), 0.0, number, 0) + struct.pack(f"<{len(label)}f", *label)
    else:
        header = IMAGE.pack(0, label, number, 0)
    return b"".join((header, encoded))


def frame(payload: bytes) -> bytes:
    """The record of ``payload``: one part, or several where it holds the magic at a multiple of 4.

    Raises:
        RecordError: longer than the format's 29 bits.
    """
    if len(payload) > MAX_LENGTH:
        raise RecordError(0, f"a payload of {len(payload)} bytes exceeds RecordIO's {MAX_LENGTH}")
    cuts = _aligned_magics(payload)
    starts = [0, *(cut + 4 for cut in cuts)]
    ends = [*cuts, len(payload)]
    last = len(cuts)
    out = []
    for part, (start, end) in enumerate(zip(starts, ends, strict=True)):
        flag = WHOLE if last == 0 else FIRST if part == 0 else LAST if part == last else MIDDLE
        out += [PART.pack(MAGIC, flag << 29 | end - start), payload[start:end]]
    out.append(b"\0" * (-len(payload) % 4))
    return b"".join(out)


def _aligned_magics(payload: bytes) -> list[int]:
    cuts = []
    at = payload.find(MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            cuts.append(at)
        # The magic cannot overlap itself at an aligned position, but an unaligned hit may hide an aligned one.
        at = payload.find(MAGIC_BYTES, at + 1)
    return cuts
