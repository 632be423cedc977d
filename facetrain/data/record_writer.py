"""Writing of ``train.rec``, ``train.idx`` and ``property`` as insightface's tools lay them out, and ``train.crc32``."""

from __future__ import annotations

import fcntl
import os
import zlib
from array import array
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from facetrain.atomic import result_file
from facetrain.data.checksums import checksum_path, encode_checksums
from facetrain.data.images import Buffer
from facetrain.data.progress import progress
from facetrain.data.record_bytes import FileBytes
from facetrain.data.record_format import EXACT, RecordError, damaged, frame, image_payload, read_record
from facetrain.data.record_index import index_path, read_index_text
from facetrain.errors import InputError


class RecordWriter:
    """Writes a .rec with its .idx, ``property`` and checksums; a context manager.

    Record 0 holds (first identity record, end), records 1.. the images in order of their classes, then one record an
    identity with the (start, end) of its images. Everything goes to temporary names and gets its own at the end of the
    ``with`` block, the .idx last; a block left by an exception leaves nothing, and what a killed process left the next
    writer of that file takes over. A file has one writer at a time.

        with RecordWriter(Path("out/train.rec"), image_size=112) as writer:
            writer.write(0, jpeg)
    """

    def __init__(
        self,
        path: Path,
        image_size: int | tuple[int, int] = 112,
        *,
        overwrite: bool = False,
        checksums: bool = False,
    ) -> None:
        """Start a data set.

        Args:
            path: the .rec; its folder is made.
            image_size: (height, width) in pixels, or both, for ``property``.
            overwrite: whether a data set of that name may be replaced.
            checksums: whether to write a .crc32 too; see :mod:`facetrain.data.checksums`.

        Raises:
            InputError: not a .rec, there already, not writable, or another process writes it.
        """
        self.path = Path(path)
        if self.path.suffix != ".rec":
            raise InputError(f"{path} must end in .rec, for example {self.path.with_suffix('.rec')}")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self._size = f"{height},{width}"
        self._checksums = checksums
        self._crcs = array("I")
        rec, idx = self.path, self.path.with_suffix(".idx")
        self._targets = (rec, self.path.with_name("property"), checksum_path(rec), idx)
        self._temporary = tuple(target.with_name(f".{target.name}.part") for target in self._targets)
        taken = [str(target) for target in self._targets if target.exists()]
        if taken and not overwrite:
            raise InputError(f"{taken[0]} is there already; remove it or choose another folder")
        folders = (self.path.parent, *self.path.parent.parents)
        self._made = [folder for folder in folders if not folder.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._rec: BinaryIO = _open_alone(self._temporary[0], self.path)
            self._idx: BinaryIO = self._temporary[-1].open("wb")
        except OSError as error:
            self._discard()
            raise InputError(f"{error.filename} cannot be written: {error.strerror}") from None
        self._number = 0
        self._position = 0
        self._starts: list[int] = []  # record number of each class's first image
        self._put(image_payload([0.0, 0.0], 0))  # the numbers follow in _write_identities

    def __enter__(self) -> RecordWriter:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the data set, or leave nothing of it after an exception."""
        if kind is None:
            self.close()
        else:
            self._discard()

    def write(self, label: int, encoded: Buffer) -> int:
        """Append an image.

        Args:
            label: its class: that of the image before or the next one, from 0 on.
            encoded: the image file's bytes; may be empty.

        Returns:
            The record's number.

        Raises:
            InputError: a label out of order, too many records for float32, or the disk is full.
        """
        classes = len(self._starts)
        expected = (classes - 1, classes) if classes else (0,)
        if label not in expected:
            raise InputError(
                f"label {label} of record {self._number}: classes must come in order, so "
                f"{' or '.join(map(str, expected))} was expected"
            )
        # This image's record, and one more for each class at the end.
        if self._number + 1 + label + 1 > EXACT:
            raise InputError(
                f"{self.path} would hold more than {EXACT} records, images and people together, and record 0 counts no "
                "further, as its labels are float32: leave out people or photos"
            )
        if label == classes:
            self._starts.append(self._number)
        return self._put(image_payload(float(label), self._number, encoded))

    def _put(self, payload: bytes) -> int:
        number = self._number
        try:
            record = frame(payload)
            self._rec.write(record)
            self._idx.write(b"%d\t%d\n" % (number, self._position))
        except RecordError as error:
            raise InputError(f"record {number}: {error.problem}") from None
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from None
        self._number += 1
        self._position += len(record)
        self._crcs.append(zlib.crc32(record))
        return number

    def close(self) -> None:
        """Write what follows the images and give the files their names.

        Raises:
            InputError: no image was written, or the files cannot be written.
        """
        try:
            if not self._starts:
                raise InputError(f"{self.path} would hold no image; expected at least one")
            self._write_identities()
            self._temporary[1].write_text(f"{len(self._starts)},{self._size}\n", encoding="ascii")
            for file in (self._rec, self._idx):
                file.flush()
                os.fsync(file.fileno())
            if self._checksums:
                self._temporary[2].write_bytes(encode_checksums(self._position, self._crcs))
            # A .rec opens only with its .idx: without the old one nobody meets a mixture of old and new.
            for target in reversed(self._targets[2:]):  # the .idx, then the checksums
                target.unlink(missing_ok=True)
            for temporary, target in zip(self._temporary, self._targets, strict=True):
                if self._checksums or target != self._targets[2]:
                    os.replace(temporary, target)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from None
        finally:
            self._discard()

    def _write_identities(self) -> None:
        first = self._number
        ends = [*self._starts[1:], first]
        for start, end in zip(self._starts, ends, strict=True):
            self._put(image_payload([float(start), float(end)], self._number))
        self._rec.seek(0)
        record = frame(image_payload([float(first), float(self._number)], 0))
        self._rec.write(record)
        self._crcs[0] = zlib.crc32(record)

    def _discard(self) -> None:
        """Remove what has not got its name yet; the .rec is closed last, as its lock says that the names are taken."""
        for remove in (*(place.unlink for place in self._temporary), *(folder.rmdir for folder in self._made)):
            with suppress(OSError):  # a folder with something in it stays
                remove()
        for name in ("_idx", "_rec"):
            with suppress(OSError):
                if file := getattr(self, name, None):
                    file.close()


def _open_alone(place: Path, target: Path) -> BinaryIO:
    """Open ``place`` for writing from its start; InputError where another process has it open."""
    busy = InputError(f"{target} is being written by another process: wait for its end or choose another folder")
    place.touch()
    file = place.open("r+b")
    try:
        with suppress(OSError):  # some network file systems have no locks
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
        if not place.exists() or not os.path.samestat(os.fstat(file.fileno()), place.stat()):
            raise busy  # it ended, and gave the file its name, between our opening and locking
        file.truncate()
    except BaseException:
        file.close()
        raise
    return file


def write_checksums(rec: Path, overwrite: bool = False) -> tuple[Path, int]:
    """Read a .rec whole and write its checksums beside it.

    Args:
        rec: the .rec, or the folder of a ``train.rec``.
        overwrite: whether older checksums may be replaced.

    Returns:
        (the .crc32, number of records).

    Raises:
        InputError: there already, not writable, or a record's framing is damaged. Whether its image decodes is not
            looked at.
    """
    rec = rec / "train.rec" if rec.is_dir() else rec
    if rec.suffix != ".rec":
        raise InputError(f"{rec} is not a .rec file; checksums are kept of .rec files")
    path = checksum_path(rec)
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already; replace it with --force once the data are known to be right")
    file = FileBytes(rec)
    numbers, offsets = read_index_text(index_path(rec))
    crcs = np.empty(len(numbers), np.uint32)
    with progress("reading", len(numbers), "records") as advance:
        # As they lie in the file, for the disk's sake.
        for done, row in enumerate(np.argsort(offsets, kind="stable").tolist(), start=1):
            offset = int(offsets[row])
            try:
                _, end = read_record(file, offset)
            except RecordError as error:
                raise damaged(rec, int(numbers[row]), error) from None
            crcs[row] = zlib.crc32(file[offset:end])
            if done % 1000 == 0:
                advance(1000)
    order = np.argsort(numbers, kind="stable")
    with result_file(path) as temporary:
        temporary.write_bytes(encode_checksums(len(file), crcs[order].tolist(), numbers[order]))
    return path, len(numbers)
