"""``facetrain data pack``: photos in a folder per person to a .rec, with people held out and pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.atomic import replacing
from facetrain.data.dataset import ignored_files, list_people
from facetrain.data.images import Fit, decode_upright, encode_jpeg, to_square
from facetrain.data.outfolder import HELD_OUT, TRAIN, check_apart, check_room, clear_sidecars
from facetrain.data.pairs_file import draw_pairs, write_bin
from facetrain.data.progress import progress
from facetrain.data.record_writer import RecordWriter
from facetrain.data.recordio import RecordFile
from facetrain.data.sampler import permutation
from facetrain.data.workers import default_workers, ordered_map
from facetrain.errors import InputError

_Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]  # as draw_pairs gives them


@dataclass(frozen=True)
class PackReport:
    """What was written.

    Attributes:
        out: the folder: ``train.rec``, ``train.idx``, ``property``, ``names.txt`` (line i: person of class i), and
            with people held out ``heldout.bin`` and the same four files in ``heldout/``.
        people, images: for training.
        held_out_people, held_out_images: kept apart.
        pairs: in ``heldout.bin``, half of them of one person; may be fewer than asked for.
        skipped: one line for each photo that could not be read.
        ignored: what in the folder was not taken for a photo, in one line; "" where that is nothing.
    """

    out: Path
    people: int
    images: int
    held_out_people: int
    held_out_images: int
    pairs: int
    skipped: tuple[str, ...]
    ignored: str


@dataclass(frozen=True)
class _Job:
    """How every photo is treated; what the worker processes know."""

    folder: Path
    people: dict[str, list[str]]
    size: int
    fit: Fit
    quality: int


@dataclass(frozen=True)
class _Person:
    name: str
    photos: tuple[bytes, ...]
    skipped: tuple[str, ...]


def pack(
    folder: Path,
    out: Path,
    *,
    size: int = 112,
    held_out: int = 0,
    pairs: int = 6000,
    seed: int = 0,
    quality: int = 95,
    fit: Fit = "crop",
    checksums: bool = True,
    overwrite: bool = False,
    workers: int | None = None,
) -> PackReport:
    """Pack a folder with one folder of photos per person.

    Args:
        folder: FOLDER/PERSON/PHOTO, see :data:`facetrain.data.dataset.EXTENSIONS`.
        out: the folder to write.
        size: pixels a side of the packed images.
        held_out: people kept apart, drawn by ``seed`` among those with two photos or more.
        pairs: verification pairs to draw of them; as many as there are, if fewer.
        seed: of the held-out people and the pairs.
        quality: of the JPEGs, 1..100.
        fit: of a photo that is not square: ``crop`` cuts its centre out, ``stretch`` distorts, ``pad`` adds black bars.
        checksums: whether to write a .crc32 beside each .rec.
        overwrite: whether an earlier packed set in ``out`` may be replaced.
        workers: processes; None takes one per core.

    Raises:
        InputError: no photo can be read, too few people to hold out, a packed set is there already, or ``folder`` and
            ``out`` lie one in the other.
    """
    check_apart(folder, out)
    check_room(out, overwrite)
    people = list_people(folder)
    names = list(people)
    apart = choose_held_out(np.array([len(photos) for photos in people.values()]), held_out, seed)
    rest = np.delete(np.arange(len(names)), apart)
    job = _Job(folder, people, size, fit, quality)
    total = sum(map(len, people.values()))
    workers = workers or default_workers(total)
    with progress("packing", total, "photos") as advance:
        held_people, train_people = (_encode(job, [names[i] for i in part], workers, advance) for part in (apart, rest))
        train, held, drawn = _write_records(
            out, size, train_people, held_people if held_out else None, checksums=checksums, pairs=pairs, seed=seed
        )
    train.write_names(out)
    if drawn is not None:
        held.write_names(out / HELD_OUT)
        _write_pairs(out / f"{HELD_OUT}.bin", out / HELD_OUT / TRAIN, drawn)
    return PackReport(
        out=out,
        people=len(train.names),
        images=sum(train.photos),
        held_out_people=len(held.names),
        held_out_images=sum(held.photos),
        pairs=0 if drawn is None else len(drawn[0]),
        skipped=(*train.skipped, *held.skipped),
        ignored=ignored_files(folder, people),
    )


def choose_held_out(photos: NDArray[np.int64], held_out: int, seed: int) -> NDArray[np.int64]:
    """Which people to keep apart: ``held_out`` numbers in rising order, of those with two photos or more.

    Args:
        photos: (P,) photos of each person.
        held_out: how many; 0 gives none.
        seed: of the draw.

    Raises:
        InputError: one person, more people than have two photos, or fewer than two left to train on.
    """
    able = np.flatnonzero(photos >= 2)
    most = min(len(able), len(photos) - 2)
    if held_out == 0:
        return np.empty(0, np.int64)
    if not 2 <= held_out <= most:
        found = f"{len(photos)} people, {len(able)} of them with two photos or more"
        advice = f"expected 2..{most}" if most >= 2 else "at least four such people are needed to hold any out"
        raise InputError(f"held_out is {held_out} of {found}; {advice}, as two must be left to train on")
    return np.sort(able[permutation(len(able), seed, 0, np.arange(held_out))])


@dataclass
class _Filled:
    """What went into a .rec: people as classes 0, 1, ...; those without a readable photo are no class."""

    names: list[str] = field(default_factory=list)
    photos: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def take(self, writer: RecordWriter, people: Iterable[_Person]) -> None:
        for person in people:
            self.skipped += person.skipped
            for photo in person.photos:
                writer.write(len(self.names), photo)
            if person.photos:
                self.names.append(" ".join(person.name.split()))
                self.photos.append(len(person.photos))

    def write_names(self, folder: Path) -> None:
        with replacing(folder / "names.txt") as temporary:
            text = "".join(f"{name}\n" for name in self.names)
            temporary.write_text(text, encoding="utf-8", errors="replace")


def _write_records(
    out: Path,
    size: int,
    train_people: Iterable[_Person],
    held_people: Iterable[_Person] | None,
    *,
    checksums: bool,
    pairs: int,
    seed: int,
) -> tuple[_Filled, _Filled, _Pairs | None]:
    """Both .rec: what is in the one to train on and in the one held out, and the pairs drawn of the latter."""
    train, held, drawn = _Filled(), _Filled(), None
    # Nothing of an older set is touched before all of the new one is there: both writers give their files their names
    # at the end of this block.
    with ExitStack() as finish:

        def writer(folder: Path) -> RecordWriter:
            return finish.enter_context(RecordWriter(folder / TRAIN, size, overwrite=True, checksums=checksums))

        if held_people is not None:
            held.take(writer(out / HELD_OUT), held_people)
            # Before the others are read: where these people do not suffice for pairs, nobody wants to wait for it.
            drawn = draw_pairs(np.repeat(np.arange(len(held.names)), held.photos), pairs, seed)
        train.take(writer(out), train_people)
        if not train.names:
            raise InputError(f"none of {len(train.skipped)} photos can be read; the first: {train.skipped[0]}")
        clear_sidecars(out)
    return train, held, drawn


def _write_pairs(path: Path, rec: Path, drawn: _Pairs) -> None:
    """The drawn pairs of a .rec's images as a .bin."""
    first, second, same = drawn
    images = RecordFile(rec)
    write_bin(path, [bytes(images.encoded(i)) for i in np.stack([first, second], axis=1).ravel().tolist()], same)


def _encode(job: _Job, names: Sequence[str], workers: int, advance: Callable[[int], None]) -> Iterator[_Person]:
    for person in ordered_map(_encode_person, names, workers, job):
        advance(len(person.photos) + len(person.skipped))
        yield person


def _encode_person(job: _Job, name: str) -> _Person:
    photos: list[bytes] = []
    skipped: list[str] = []
    for file in job.people[name]:
        path = job.folder / name / file
        try:
            photo = to_square(decode_upright(path.read_bytes()), job.size, job.fit)
        except InputError as error:
            skipped.append(f"{path}: {error}")
        except OSError as error:
            skipped.append(f"{path}: cannot be read: {error.strerror}")
        else:
            photos.append(encode_jpeg(photo, job.quality))
    return _Person(name, tuple(photos), tuple(skipped))
