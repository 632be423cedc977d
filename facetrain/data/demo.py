"""The demonstration's files: a long-tailed training set of rendered people and pair sets to judge what was learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facetrain import keyed
from facetrain.data.images import encode_jpeg
from facetrain.data.outfolder import HELD_OUT, TRAIN, check_room, clear_sidecars
from facetrain.data.pairs_file import draw_pairs, write_bin
from facetrain.data.progress import progress
from facetrain.data.record_writer import RecordWriter
from facetrain.data.synthetic import render
from facetrain.data.workers import default_workers, ordered_map
from facetrain.errors import InputError

UNSEEN = 1_000_000
"""Photos of trained people for the pair sets are numbered from here; training photos from 0."""

FURTHER = 2 * UNSEEN
"""Photos of trained people for ``seen/`` are numbered from here, so that no pair set shows one of them."""

SEEN = "seen"

QUALITY = 90
"""Of the JPEGs."""

_Job = tuple[int, tuple[int, ...]]  # a person and the numbers of the photos wanted
_Photo = tuple[int, int]  # a person and the number of a photo
_Settings = tuple[int, int, float]  # seed, size, difficulty


class Demo(NamedTuple):
    """What :func:`write_demo` wrote."""

    train: Path
    """``train.rec``, with its .idx and ``property`` beside it."""
    held_out: Path
    """``heldout/train.rec``: the people of ``heldout.bin``, for open-set evaluation."""
    pair_sets: tuple[Path, Path, Path]
    """``heldout.bin``, ``head.bin``, ``tail.bin``."""
    seen: Path | None
    """``seen/train.rec``: new photos of trained people under their training classes; None where none were wanted."""
    people: int
    images: int
    """Training images."""


def write_demo(
    out: Path,
    *,
    people: int,
    head: int,
    size: int,
    held_out: int,
    held_out_images: int,
    seed: int,
    images_head: int = 60,
    images_tail: int = 5,
    seen_images: int = 0,
    pairs: int = 6000,
    difficulty: float = 1.0,
    workers: int | None = None,
    overwrite: bool = False,
) -> Demo:
    """Render the demonstration set; every byte is a function of the arguments, whatever the number of workers.

    ``train.rec`` holds people 0..people-1, the class being the person's number: the first ``head`` with ``images_head``
    photos, the others with ``images_tail``. ``heldout.bin`` pairs photos of ``held_out`` further people, who are also
    in ``heldout/train.rec``; ``head.bin`` and ``tail.bin`` pair photos of trained people that are not trained on, and
    ``seen/train.rec`` holds ``seen_images`` more of those, of every trained person, in none of the sets above.

    Args:
        out: folder, made where it is missing.
        people: classes of the training set.
        head: how many of them have many photos.
        size: pixels a side, 24..256.
        held_out: people never trained on.
        held_out_images: photos of each.
        seed: names the population.
        images_head: training photos of a head person.
        images_tail: training photos of a tail person.
        seen_images: photos of each trained person in ``seen/train.rec``; 0 writes none.
        pairs: pairs a set, a multiple of 20; half of them show one person. Small populations give fewer.
        difficulty: see :func:`facetrain.data.synthetic.render`.
        workers: rendering processes; None takes the cores there are.
        overwrite: whether an older set in ``out`` may be replaced.

    Raises:
        InputError: numbers that give no such set, or files that are there already or cannot be written.
    """
    if not 2 <= head <= people - 2:
        raise InputError(f"head = {head} of people = {people}: at least 2 head and 2 tail people are needed")
    if held_out < 2:
        raise InputError(f"held_out = {held_out} must be 2 or more; raise it")
    if not 1 <= min(images_head, images_tail) <= max(images_head, images_tail) <= UNSEEN:
        raise InputError(f"images_head = {images_head} and images_tail = {images_tail} must be in 1..{UNSEEN}")
    if not 0 <= seen_images <= UNSEEN:
        raise InputError(f"seen_images = {seen_images} must be in 0..{UNSEEN}")
    render(seed, 0, 0, size, difficulty)  # refuses a size or difficulty before anything is written
    check_room(out, overwrite)
    if not overwrite and (out / SEEN / TRAIN).exists():
        raise InputError(f"{out / SEEN / TRAIN} is there already: choose another folder, or replace it with --force")
    demo = Demo(
        train=out / TRAIN,
        held_out=out / HELD_OUT / TRAIN,
        pair_sets=(out / f"{HELD_OUT}.bin", out / "head.bin", out / "tail.bin"),
        seen=out / SEEN / TRAIN if seen_images else None,
        people=people,
        images=head * images_head + (people - head) * images_tail,
    )
    train = [(person, tuple(range(images_head if person < head else images_tail))) for person in range(people)]
    test = [(person, tuple(range(held_out_images))) for person in range(people, people + held_out)]
    further = [(person, tuple(range(FURTHER, FURTHER + seen_images))) for person in range(people if seen_images else 0)]
    groups = [range(head), range(head, people)]
    _write(demo, train, test, further, groups, pairs, (seed, size, difficulty), workers)
    return demo


def _write(
    demo: Demo,
    train: Sequence[_Job],
    test: Sequence[_Job],
    further: Sequence[_Job],
    groups: Sequence[range],
    pairs: int,
    settings: _Settings,
    workers: int | None,
) -> None:
    """Renders and writes; ``groups`` are the people of the second and third pair set."""
    drawn = [_draw(test, pairs, settings[0])]
    drawn += [_draw(_unseen_photos(group, pairs), pairs, settings[0]) for group in groups]
    unseen = [_by_person(photos) for photos, _ in drawn[1:]]
    total = sum(len(photos) for jobs in (train, test, further, *unseen) for _, photos in jobs)
    workers = default_workers(total) if workers is None else workers
    with progress("rendering", total) as advance:

        def rendered(jobs: Sequence[_Job]) -> Iterator[tuple[_Photo, bytes]]:
            batches = ordered_map(_render, jobs, workers, settings)
            for (person, photos), images in zip(jobs, batches, strict=True):
                advance(len(images))
                yield from (((person, photo), image) for photo, image in zip(photos, images, strict=True))

        if demo.seen is None:
            _remove_set(demo.train.parent / SEEN)
        else:
            with RecordWriter(demo.seen, settings[1], overwrite=True) as seen:
                for (person, _), image in rendered(further):
                    seen.write(person, image)
        needed = set(drawn[0][0])
        shown: dict[_Photo, bytes] = {}
        with (
            RecordWriter(demo.train, settings[1], overwrite=True) as writer,
            RecordWriter(demo.held_out, settings[1], overwrite=True) as held_out,
        ):
            for (person, _), image in rendered(train):
                writer.write(person, image)
            for photo, image in rendered(test):
                held_out.write(photo[0] - test[0][0], image)
                if photo in needed:
                    shown[photo] = image
            clear_sidecars(demo.train.parent)
        for number, (path, (photos, same)) in enumerate(zip(demo.pair_sets, drawn, strict=True)):
            if number:
                shown = dict(rendered(unseen[number - 1]))
            write_bin(path, [shown[photo] for photo in photos], same)


def _remove_set(folder: Path) -> None:
    """Remove a set that an older demonstration left and this one does not write."""
    for name in (TRAIN, "train.idx", "train.index.npy", "property"):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # not there, or the user keeps something in it
        folder.rmdir()


def _unseen_photos(people: Sequence[int], pairs: int) -> list[_Job]:
    """Enough new photos of each person that twice the wanted pairs of one person exist."""
    each = 4
    while len(people) * each * (each - 1) // 2 < pairs:
        each += 1
    return [(person, tuple(range(UNSEEN, UNSEEN + each))) for person in people]


def _draw(jobs: Sequence[_Job], pairs: int, seed: int) -> tuple[list[_Photo], NDArray[np.bool_]]:
    """Pairs of the jobs' photos: the 2N photos, those of pair i at 2i and 2i + 1, and whether they show one person."""
    photos = [(person, photo) for person, numbers in jobs for photo in numbers]
    people = np.array([person for person, _ in photos], np.int64)
    first, second, same = draw_pairs(people, pairs, int(keyed.bits(seed, jobs[0][0])))
    return [photos[i] for pair in zip(first, second, strict=True) for i in pair], same


def _by_person(photos: Sequence[_Photo]) -> list[_Job]:
    found: dict[int, list[int]] = {}
    for person, photo in sorted(set(photos)):
        found.setdefault(person, []).append(photo)
    return [(person, tuple(numbers)) for person, numbers in found.items()]


def _render(settings: _Settings, job: _Job) -> list[bytes]:
    seed, size, difficulty = settings
    person, photos = job
    return [encode_jpeg(render(seed, person, photo, size, difficulty), QUALITY) for photo in photos]
