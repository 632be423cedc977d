"""``facetrain data pack``: photos in a folder per person to a .rec, with people held out and pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from facetrain.data.dataset import list_people
from facetrain.data.images import decode_upright, encode_jpeg, resize
from facetrain.data.pairs_file import draw_pairs, write_bin
from facetrain.data.progress import default_workers, ordered_map, progress
from facetrain.data.recordio import RecordWriter
from facetrain.data.sampler import permutation
from facetrain.errors import InputError

Fit = Literal["crop", "stretch", "pad"]
HELD_OUT = "heldout"


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
    """

    out: Path
    people: int
    images: int
    held_out_people: int
    held_out_images: int
    pairs: int
    skipped: tuple[str, ...]


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
    size: int = 112,
    held_out: int = 0,
    pairs: int = 6000,
    seed: int = 0,
    quality: int = 95,
    fit: Fit = "crop",
    force: bool = False,
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
        force: whether an earlier packed set in ``out`` may be replaced.
        workers: processes; None takes one per core.

    Raises:
        InputError: no photo can be read, too few people to hold out, or a packed set is there already.
    """
    people = list_people(folder)
    names = list(people)
    apart = choose_held_out(np.array([len(photos) for photos in people.values()]), held_out, seed)
    _make_room(out, force)
    job = _Job(folder, people, size, fit, quality)
    total = sum(map(len, people.values()))
    workers = workers or default_workers(total)
    with progress("packing", total, "photos") as advance:
        # The held-out people first: where they do not suffice for pairs, it shows before anything is written.
        held = list(_encode(job, [names[i] for i in apart], workers, advance))
        held_photos = [photo for person in held for photo in person.photos]
        held_labels = np.repeat(np.arange(len(held)), [len(person.photos) for person in held])
        chosen = draw_pairs(held_labels, pairs, seed) if held_out else None
        rest = [name for i, name in enumerate(names) if i not in set(apart.tolist())]
        train = _write_set(out, size, _encode(job, rest, workers, advance))
    skipped = train.skipped
    if chosen is not None:
        skipped += _write_set(out / HELD_OUT, size, held).skipped
        first, second, same = chosen
        write_bin(out / f"{HELD_OUT}.bin", [held_photos[i] for i in np.stack([first, second], axis=1).ravel()], same)
    return PackReport(
        out=out,
        people=train.people,
        images=train.images,
        held_out_people=sum(bool(person.photos) for person in held),
        held_out_images=len(held_photos),
        pairs=0 if chosen is None else len(chosen[0]),
        skipped=tuple(skipped),
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


def to_square(image: NDArray[np.uint8], size: int, fit: Fit) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 to (size, size, 3): the centre cut out, distorted, or with black bars."""
    height, width = image.shape[:2]
    if height != width and fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    elif height != width and fit == "pad":
        side = max(height, width)
        square = np.zeros((side, side, 3), np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = image
        image = square
    return resize(np.ascontiguousarray(image), size)


def _make_room(out: Path, force: bool) -> None:
    """Refuse to replace a packed set; with ``force`` remove its held-out part, which a new draw would contradict."""
    part = out / HELD_OUT
    ours = [out / "train.rec", out / f"{HELD_OUT}.bin", part / "train.rec"]
    there = [path for path in ours if path.exists()]
    if there and not force:
        raise InputError(f"{there[0]} is there already: choose another folder, or replace it with --force")
    for path in (ours[1], part / "train.idx", part / "train.rec", part / "property", part / "names.txt"):
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Written:
    people: int
    images: int
    skipped: list[str]


def _write_set(folder: Path, size: int, people: Iterable[_Person]) -> _Written:
    """Write people as classes 0, 1, ...; those without a readable photo are no class."""
    names: list[str] = []
    skipped: list[str] = []
    images = 0
    with RecordWriter(folder / "train.rec", size, overwrite=True) as writer:
        for person in people:
            skipped += person.skipped
            for photo in person.photos:
                writer.write(len(names), photo)
            images += len(person.photos)
            if person.photos:
                names.append(" ".join(person.name.split()))
        if not images:
            raise InputError(f"none of {len(skipped)} photos can be read; the first: {skipped[0]}")
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8", errors="replace")
    return _Written(len(names), images, skipped)


def _encode(job: _Job, names: Sequence[str], workers: int, advance: Callable[[int], None]) -> Iterator[_Person]:
    for person in ordered_map(_encode_person, names, workers, _set_job, (job,)):
        advance(len(person.photos) + len(person.skipped))
        yield person


_job: _Job | None = None


def _set_job(job: _Job) -> None:
    global _job
    _job = job


def _encode_person(name: str) -> _Person:
    assert _job is not None
    photos: list[bytes] = []
    skipped: list[str] = []
    for file in _job.people[name]:
        path = _job.folder / name / file
        try:
            photo = to_square(decode_upright(path.read_bytes()), _job.size, _job.fit)
        except InputError as error:
            skipped.append(f"{path}: {error}")
        except OSError as error:
            skipped.append(f"{path}: cannot be read: {error.strerror}")
        else:
            photos.append(encode_jpeg(photo, _job.quality))
    return _Person(name, tuple(photos), tuple(skipped))
