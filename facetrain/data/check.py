"""``facetrain data check``: does every image decode, are the labels in range, and how are the images shared out?"""

from __future__ import annotations

import itertools
from bisect import insort
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.atomic import check_folder
from facetrain.data.checksums import Checksums, find_checksums
from facetrain.data.class_plot import plot_classes
from facetrain.data.dataset import (
    Images,
    PhotoFiles,
    class_counts,
    ignored_files,
    list_people,
    open_images,
    require_index,
)
from facetrain.data.encoded import Encoded
from facetrain.data.images import Buffer, decode, decode_upright
from facetrain.data.progress import progress
from facetrain.data.record_bytes import FileBytes
from facetrain.data.record_format import EXACT, RecordError, damaged, parse_image, read_record
from facetrain.data.record_index import index_path, read_index_text
from facetrain.data.recordio import RecordFile, read_image, read_property, scan
from facetrain.data.workers import default_workers, ordered_map
from facetrain.errors import InputError

TAIL_IMAGES = 5
SHOWN = 10
_CHUNK = 256


@dataclass(frozen=True)
class CheckReport:
    """What was found.

    Attributes:
        path: the data that were checked.
        images: N, those that do not decode too; of a .rec that training would refuse, those of its readable records.
        people: C; of a .rec that training would refuse, as its ``property`` says, else the largest label + 1.
        empty: classes without an image.
        smallest, median, largest: images per person.
        head, tail: people with more than, and with 1 to, five images.
        sizes: "WIDTH x HEIGHT" -> images, most frequent first.
        damaged: images that do not decode.
        out_of_range: labels outside 0..C-1.
        broken: other places of a .rec that are wrong: unreadable records, bytes that belong to none, overlaps, and
            whatever else training would refuse.
        problems: one line for each of the first ten problems in the order of the file, with record and byte, or path.
        ignored: what in a folder per person was not taken for a photo, in one line; "" where that is nothing.
        histogram: (fewest, most, people): how many people have fewest..most images, by doubling.
        plot: the written PNG.
    """

    path: Path
    images: int
    people: int
    empty: int
    smallest: int
    median: float
    largest: int
    head: int
    tail: int
    sizes: dict[str, int] = field(default_factory=dict)
    damaged: int = 0
    out_of_range: int = 0
    broken: int = 0
    problems: tuple[str, ...] = ()
    ignored: str = ""
    histogram: tuple[tuple[int, int, int], ...] = ()
    plot: Path | None = None

    @property
    def unnamed(self) -> int:
        """How many problems there are besides those in ``problems``."""
        return self.damaged + self.out_of_range + self.broken - len(self.problems)

    def raise_if_damaged(self) -> None:
        """InputError in one line with the first problem, where there is one; for after the summary."""
        if self.problems:
            raise InputError(
                f"{self.path} has {self.damaged} damaged images, {self.out_of_range} labels out of range and "
                f"{self.broken} damaged records; the first: {self.problems[0]}"
            )


def check(path: Path, output: Path | None = None, workers: int | None = None) -> CheckReport:
    """Decode every image and look at every label.

    Args:
        path: a .rec file or a folder per person.
        output: where the class histogram goes, a .png; None draws none.
        workers: processes; None takes one per core.

    Returns:
        The report; damaged images are in it and raise nothing here, see :meth:`CheckReport.raise_if_damaged`.

    Raises:
        InputError: there is no such data set, its .idx cannot be read, or ``output`` is no .png.
    """
    if output is not None and output.suffix.lower() != ".png":
        raise InputError(f"{output}: the plot is a PNG; choose a name that ends in .png")
    if output is not None:
        check_folder(output.parent)
    broken, damaged, wrong = _Problems(), _Problems(), _Problems()
    images = _open(Path(path), broken, wrong)
    sizes = _decode_all(images, workers or default_workers(len(images)), damaged)
    labels = np.asarray(images.labels)
    counts = class_counts(labels[(labels >= 0) & (labels < images.num_classes)], images.num_classes)
    present = counts[counts > 0]
    plot = None if output is None else plot_classes(counts, output)
    return CheckReport(
        path=Path(path),
        images=len(images),
        people=images.num_classes,
        empty=int((counts == 0).sum()),
        smallest=int(present.min()) if present.size else 0,
        median=float(np.median(present)) if present.size else 0.0,
        largest=int(present.max(initial=0)),
        head=int((counts > TAIL_IMAGES).sum()),
        tail=int(((counts > 0) & (counts <= TAIL_IMAGES)).sum()),
        sizes=dict(sizes.most_common()),
        damaged=damaged.count,
        out_of_range=wrong.count,
        broken=broken.count,
        problems=tuple(message for _, message in sorted(broken.first + damaged.first + wrong.first))[:SHOWN],
        ignored=ignored_files(images.root, list_people(images.root)) if isinstance(images, PhotoFiles) else "",
        histogram=histogram_of(counts),
        plot=plot,
    )


def histogram_of(counts: NDArray[np.int64]) -> tuple[tuple[int, int, int], ...]:
    """(C,) images per person -> (fewest, most, people) for 1, 2..3, 4..7, ... images, up to the largest."""
    edges = [2**power for power in range(int(counts.max(initial=0)).bit_length() + 1)]
    return tuple(
        (fewest, beyond - 1, int(((counts >= fewest) & (counts < beyond)).sum()))
        for fewest, beyond in itertools.pairwise(edges)
    )


class _Problems:
    """How many there are, and the first of them as (place, message); places are bytes of a .rec or image numbers."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[tuple[int, str]] = []

    def add(self, place: int, message: str) -> None:
        self.count += 1
        insort(self.first, (place, message))
        del self.first[SHOWN:]


class _ReadableRecords(Encoded):
    """The images of a .rec that does not open, as :class:`Images`: what is in the .idx, can be read and holds an image.

    Labels that are no class are -1.
    """

    _checksums: Checksums | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        numbers, offsets = read_index_text(index_path(path))
        self._file = FileBytes(path)
        with suppress(InputError):  # those of another file were told already
            self._checksums = find_checksums(path, len(self._file))
        values = np.full(len(offsets), np.nan)
        keep = np.zeros(len(offsets), np.bool_)
        for row, offset in enumerate(offsets):
            try:
                record = parse_image(read_record(self._file, int(offset))[0], int(offset))
            except RecordError:
                continue
            values[row] = record.labels[0]
            keep[row] = len(record.payload) or not record.flag  # without an image: record 0, identities
        self.values, self.numbers, self.offsets = values[keep], numbers[keep], offsets[keep]
        right = (self.values >= 0) & (self.values <= EXACT) & (self.values == np.floor(self.values))
        self.labels: NDArray[np.int64] = np.where(right, self.values, -1).astype(np.int64)
        self.num_classes = int(self.labels.max(initial=-1)) + 1
        with suppress(InputError):
            if found := read_property(path.with_name("property")):
                self.num_classes = found[0]

    def __reduce__(self) -> tuple[type[_ReadableRecords], tuple[Path]]:
        return _ReadableRecords, (self.path,)  # an open file cannot be sent to another process

    def __len__(self) -> int:
        return len(self.labels)

    def encoded(self, i: int) -> Buffer:
        offset = int(self.offsets[i])
        try:
            return read_image(self._file, self._checksums, int(self.numbers[i]), offset)
        except RecordError as error:
            raise damaged(self.path, int(self.numbers[i]), error) from None

    def where(self, i: int) -> str:
        return f"{self.path.name} record {self.numbers[i]} at byte {self.offsets[i]}"


def _open(path: Path, broken: _Problems, wrong: _Problems) -> Images:
    """The images, whatever can be read of them; what keeps a .rec from being opened goes into the problems."""
    rec = path / "train.rec" if path.is_dir() else path
    if rec.suffix != ".rec" or not rec.is_file():
        return open_images(path)
    require_index(rec)
    checksums = None
    try:
        checksums = find_checksums(rec, rec.stat().st_size)
    except InputError as error:
        broken.add(0, str(error))
    with progress("scanning", None, "records") as advance:
        for number, record in enumerate(scan(rec, checksums), start=1):
            if record.problem is not None:
                broken.add(record.byte, f"{rec.name} record {record.number} at byte {record.byte}: {record.problem}")
            if number % 1000 == 0:
                advance(1000)
    try:
        return open_images(path)
    except InputError as error:
        readable = _ReadableRecords(rec)
        for i in np.flatnonzero((readable.labels < 0) | (readable.labels >= readable.num_classes)).tolist():
            expected = f"expected a class 0..{readable.num_classes - 1}"
            wrong.add(int(readable.offsets[i]), f"{readable.where(i)}: label {readable.values[i]:.9g}; {expected}")
        if not broken.count + wrong.count:  # something else: the property file, or what record 0 says
            broken.add(0, str(error))
        return readable


def _decode_all(images: Images, workers: int, damaged: _Problems) -> Counter[str]:
    """How many images have each size; those that do not decode go into the problems."""
    sizes: Counter[str] = Counter()
    starts = range(0, len(images), _CHUNK)
    with progress("checking", len(images)) as advance:
        for start, (found, bad) in zip(starts, ordered_map(_decode_chunk, starts, workers, images), strict=True):
            sizes.update(found)
            for i, message in bad:
                damaged.add(_place(images, i), message)
            advance(min(_CHUNK, len(images) - start))
    return sizes


def _place(images: Images, i: int) -> int:
    """What image i is ordered by: its byte of a .rec, else its number."""
    if isinstance(images, _ReadableRecords):
        return int(images.offsets[i])
    return images.byte_offset(i) if isinstance(images, RecordFile) else i


def _decode_chunk(images: Images, start: int) -> tuple[Counter[str], list[tuple[int, str]]]:
    sizes: Counter[str] = Counter()
    bad: list[tuple[int, str]] = []
    to_pixels = decode_upright if isinstance(images, PhotoFiles) else decode
    for i in range(start, min(start + _CHUNK, len(images))):
        try:
            encoded = images.encoded(i)
        except InputError as error:
            bad.append((i, str(error)))
            continue
        try:
            height, width = to_pixels(encoded).shape[:2]
            sizes[f"{width} x {height}"] += 1
        except InputError as error:
            bad.append((i, f"{images.where(i)}: {error}"))
    return sizes, bad
