"""Training records as insightface's and mxnet's tools write them: ``train.rec``, ``train.idx``, ``property``.

:class:`RecordFile` reads them at random by their place; :func:`scan` looks for damage.
:mod:`facetrain.data.record_writer` writes them; :mod:`facetrain.data.record_format` knows their bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from facetrain.data.checksums import Checksums, find_checksums
from facetrain.data.encoded import Encoded, FileChangedError
from facetrain.data.images import Buffer
from facetrain.data.record_bytes import FileBytes
from facetrain.data.record_cache import Stamp, load_index, stamp
from facetrain.data.record_format import HEAD, MAGIC, PART, RecordError, damaged, parse_image, read_record
from facetrain.data.record_index import Index, index_path, read_index_text
from facetrain.errors import InputError

_GUESS, _MOST = 1 << 15, 1 << 20
"""Bytes read at once where the next record says nothing of this one's size, and at most."""


def read_image(file: FileBytes, checksums: Checksums | None, number: int, offset: int) -> Buffer:
    """The encoded image of record ``number`` at byte ``offset``, however many parts it has.

    Raises:
        RecordError: it is damaged, or has another checksum.
    """
    payload, end = read_record(file, offset)
    image = parse_image(payload, offset).payload
    if checksums is not None:
        checksums.verify(number, file[offset:end], offset)
    return image


class RecordFile(Encoded):
    """The images of a .rec as :class:`facetrain.data.dataset.Images`, read at random.

    Record 0 of insightface's files says which records are images; in files of im2rec every record is one. Costs 16 to
    20 bytes an image, shared by all processes from 100,000 images on (:mod:`facetrain.data.record_cache`). Picklable:
    the other process opens the files anew. Safe to fork: nothing is read through a shared file position.
    """

    labels: NDArray[np.int64]
    """(N,) int64, the class of each image in 0..C-1; for vector labels their first."""
    num_classes: int
    """C: from record 0, else from the ``property`` file, else the largest label + 1."""
    checksums: Checksums | None
    """What every record is compared with as it is read; None where there is no .crc32."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, a .rec with its .idx beside it.

        Raises:
            InputError: a file is missing or damaged, record headers included, a label is not one of the classes, or
                the .crc32 beside it belongs to another .rec.
        """
        self.path = Path(path)
        self._open(load_index(self.path), stamp(self.path))
        self.num_classes = _count_classes(self.path, self._index)
        if self.checksums is not None:
            self._refuse_foreign(self.checksums)

    def _open(self, loaded: tuple[Index, bool], version: Stamp) -> None:
        self._index, self._cached = loaded
        self._version = version
        self._file = FileBytes(self.path)
        self.checksums = find_checksums(self.path, len(self._file))
        self.labels = self._index.labels
        self._count = len(self.labels)
        # Single places come out of a memoryview several times as fast as out of an array.
        self._offsets = self._index.offsets.data

    def _refuse_foreign(self, checksums: Checksums) -> None:
        """InputError where three images all differ from their checksums: one damaged image is no reason to refuse."""
        for i in (0, self._count // 2, self._count - 1):
            with suppress(InputError):
                self.encoded(i)
                return
        raise InputError(
            f"{checksums.path} belongs to another {self.path.name}, or this one is damaged throughout: none of the "
            "records looked at has its checksum; restore the .rec, or remove the checksums"
        )

    def __getstate__(self) -> tuple[Path, int, Stamp, Index | None]:
        return self.path, self.num_classes, self._version, None if self._cached else self._index

    def __setstate__(self, state: tuple[Path, int, Stamp, Index | None]) -> None:
        self.path, self.num_classes, version, index = state
        if stamp(self.path) != version:
            raise InputError(f"{self.path} or its .idx changed while it was in use; start again")
        self._open(load_index(self.path) if index is None else (index, False), version)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def encoded(self, i: int) -> Buffer:
        """The encoded image ``i`` of 0..N-1, read-only.

        Raises:
            FileChangedError: the file has become shorter since it was opened.
            InputError: the record is damaged; names it and its byte.
        """
        if not 0 <= i < self._count:
            raise IndexError(f"image {i} of {self._count}")
        offset, size = self._offsets[i], self._file.size
        # Up to the next record, where they lie in order.
        count = (self._offsets[i + 1] if i + 1 < self._count else size) - offset
        if not 0 < count <= _MOST:
            count = min(_GUESS, size - offset)
        record = memoryview(self._file.read(count, offset))
        try:
            if count >= HEAD.size:
                magic, length, flag = HEAD.unpack_from(record)
                start, end = HEAD.size + 4 * flag, PART.size + length
                padded = end + (-length & 3)
                # A length whose upper three bits (the part flag) are set lies beyond every record of one part.
                if magic == MAGIC and length < 1 << 29 and start <= end and padded <= count:
                    if self.checksums is not None:
                        self.checksums.verify(self.record_number(i), record[:padded], offset)
                    return record[start:end]
            return read_image(self._file, self.checksums, self.record_number(i), offset)
        except RecordError as error:
            raise damaged(self.path, self.record_number(i), error) from None

    def to_pixels(self, encoded: Buffer, out: NDArray[np.uint8]) -> None:
        """Decode into ``out``: the usual JPEG of the very size without another look at its header.

        The decoder reads it too and refuses what is larger than ``out`` before it decodes a pixel.
        """
        try:
            if simplejpeg.decode_jpeg(encoded, colorspace="RGB", buffer=out).shape == out.shape:
                return
        except (ValueError, KeyError):
            pass
        super().to_pixels(encoded, out)  # which says what is wrong, if anything is

    def check_unchanged(self) -> None:
        """FileChangedError where the .rec or its .idx is gone, or no longer of the size and time it was opened with."""
        try:
            now = stamp(self.path)
        except InputError:
            gone = self.path if not self.path.exists() else index_path(self.path)
            raise FileChangedError(f"{gone} disappeared while it was read; restore it and start again") from None
        if now == self._version:
            return
        for path, size, before in (
            (self.path, now[1], self._version[1]),
            (index_path(self.path), now[3], self._version[3]),
        ):
            if size != before:
                how = "shrank" if size < before else "grew"
                raise FileChangedError(
                    f"{path} {how} from {before} to {size} bytes while it was read; restore the file and start again"
                )
        raise FileChangedError(f"{self.path} or its .idx was written to while it was read; start again")

    def record_number(self, i: int) -> int:
        """The number of image ``i`` in the .idx."""
        return self._index.number(i)

    def byte_offset(self, i: int) -> int:
        """The byte of the .rec where the record of image ``i`` starts."""
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return int(self._index.offsets[i])

    def where(self, i: int) -> str:
        """Image ``i`` in messages: ``train.rec record 17 at byte 8123``."""
        return f"{self.path.name} record {self.record_number(i)} at byte {self.byte_offset(i)}"


def read_property(path: Path) -> tuple[int, int, int] | None:
    """(number of classes, height, width) of a ``property`` file, None where there is none.

    Raises:
        InputError: there, but not three positive integers with commas between them.
    """
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            text = file.read(200).strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    words = text.split(",")
    if len(words) != 3 or not all(word.strip().isascii() and word.strip().isdigit() for word in words):
        raise InputError(f"{path}: {text[:40]!r} is not 'classes,height,width', for example '85742,112,112'")
    classes, height, width = (int(word) for word in words)
    if min(classes, height, width) < 1:
        raise InputError(f"{path}: {text[:40]!r} must be positive numbers 'classes,height,width'")
    return classes, height, width


def _count_classes(path: Path, index: Index) -> int:
    found = read_property(path.with_name("property"))
    highest = int(index.labels.max())  # argmax would copy the read-only map
    if found is None and index.identities == 0:
        return highest + 1
    if found is not None and index.identities not in (0, found[0]):
        raise InputError(
            f"{path.with_name('property')} counts {found[0]} classes but record 0 of {path.name} {index.identities}; "
            "correct the first number of property, or remove that file"
        )
    classes, source = (index.identities, "record 0") if found is None else (found[0], "property")
    if highest >= classes:
        largest = int(index.labels.argmax())
        raise InputError(
            f"{path} record {index.number(largest)} at byte {index.offsets[largest]}: label {highest}; "
            f"expected a class 0..{classes - 1}, as {source} counts {classes}"
        )
    return classes


class ScannedRecord(NamedTuple):
    """One record that :func:`scan` looked at."""

    number: int
    byte: int
    problem: str | None
    """What is wrong with it, None where nothing is."""


def scan(path: Path, checksums: Checksums | None = None) -> Iterator[ScannedRecord]:
    """Walk over all records in the order of their bytes and say of each whether it is whole.

    Checks framing, multi-part order, the image header, that each record ends where the next begins and the last at the
    end of the file; of records without an image the checksum too (the others' are compared as they are read). Goes on
    after a damaged record, as the .idx says where the next one starts.

    Raises:
        InputError: the .idx is damaged or one of the files is missing.
    """
    numbers, offsets = read_index_text(index_path(path))
    file = FileBytes(path)
    order = np.argsort(offsets, kind="stable")
    for i, row in enumerate(order):
        number, offset = int(numbers[row]), int(offsets[row])
        following = int(offsets[order[i + 1]]) if i + 1 < len(order) else len(file)
        if i == 0 and offset != 0:
            yield ScannedRecord(number, 0, f"{offset} bytes before the first record are in no record")
        yield ScannedRecord(number, *_examine(file, checksums, number, offset, following))


def _examine(
    file: FileBytes, checksums: Checksums | None, number: int, offset: int, following: int
) -> tuple[int, str | None]:
    try:
        payload, end = read_record(file, offset)
        image = parse_image(payload, offset).payload
        if checksums is not None and not len(image):
            checksums.verify(number, file[offset:end], offset)
    except RecordError as error:
        return error.byte, error.problem
    if end < following:
        return end, f"{following - end} bytes after this record are in no record"
    if end > following:
        return offset, f"ends at byte {end}, after the next record's start at byte {following}"
    return offset, None
