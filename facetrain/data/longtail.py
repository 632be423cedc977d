"""``facetrain data subset``: the long-tailed training set <H, T> of Liu et al. (CVPR 2020) from a whole one."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain import keyed
from facetrain.atomic import replacing
from facetrain.data.dataset import Images, class_counts, open_images
from facetrain.data.images import image_size
from facetrain.data.outfolder import TRAIN, check_room, clear_sidecars
from facetrain.data.progress import progress
from facetrain.data.record_writer import RecordWriter
from facetrain.errors import InputError


@dataclass(frozen=True)
class SubsetReport:
    """What was written to ``out``: ``train.rec``, ``train.idx``, ``property`` and ``classes.csv``."""

    out: Path
    head_classes: int
    head_images: int
    tail_classes: int
    tail_images: int
    smallest_head: int
    """Images of the smallest head class."""


def subset(
    rec: Path,
    out: Path,
    *,
    head: int = 5000,
    tail: int = 20000,
    tail_images: int = 5,
    seed: int = 0,
    overwrite: bool = False,
) -> SubsetReport:
    """Write <H, T>: the ``head`` largest classes whole, of the next ``tail`` classes ``tail_images`` images each.

    Images are copied as they are, not encoded again. New classes are in order of size, head first; ``classes.csv`` says
    which old class each one is.

    Args:
        rec: the whole set: a .rec, its folder, or a folder per person.
        out: the folder to write.
        head: H, classes.
        tail: T, classes.
        tail_images: images that each tail class keeps.
        seed: of the images kept.
        overwrite: whether a data set in ``out`` may be replaced.

    Raises:
        InputError: not enough classes, or tail classes with too few images.
    """
    target = out / TRAIN
    check_room(out, overwrite)
    images = open_images(rec)
    source = rec / TRAIN if rec.is_dir() else rec  # not there where the images are single files
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"{target} is the data set to read: choose another folder to write to")
    counts = class_counts(images.labels, images.num_classes)
    classes = choose_classes(counts, head, tail, tail_images)
    chosen, new_labels = choose_images(images.labels, classes, head, tail_images, seed)
    size = _size(images, int(chosen[0]))
    with (
        RecordWriter(target, size, overwrite=overwrite, checksums=True) as writer,
        progress("copying", len(chosen)) as advance,
    ):
        for number, (i, label) in enumerate(zip(chosen.tolist(), new_labels.tolist(), strict=True), start=1):
            writer.write(label, images.encoded(i))
            if number % 1000 == 0:
                advance(1000)
        clear_sidecars(out)
    kept = class_counts(new_labels, len(classes))
    _write_classes(out / "classes.csv", classes, kept, head)
    return SubsetReport(
        out=out,
        head_classes=head,
        head_images=int(kept[:head].sum()),
        tail_classes=tail,
        tail_images=int(kept[head:].sum()),
        smallest_head=int(kept[:head].min()) if head else 0,
    )


def choose_classes(counts: NDArray[np.int64], head: int, tail: int, tail_images: int) -> NDArray[np.int64]:
    """The ``head + tail`` largest classes.

    Args:
        counts: (C,) images per class.
        head: H >= 0.
        tail: T >= 0.
        tail_images: what every tail class must have at least.

    Returns:
        (H + T,) int64 class ids by falling size, ties by rising id; the first H are the head.

    Raises:
        InputError: there are fewer classes with images, or a tail class has too few.
    """
    for name, value, least in (("head", head, 0), ("tail", tail, 0), ("tail_images", tail_images, 1)):
        if value < least:
            raise InputError(f"{name} is {value}; expected at least {least}")
    present = int((counts > 0).sum())
    wanted = head + tail
    if wanted < 2 or wanted > present:
        raise InputError(
            f"head {head} + tail {tail} = {wanted} classes, and {present} classes have images: lower head or tail"
            if wanted >= 2
            else f"head {head} + tail {tail} make {wanted} classes; at least 2 are needed to train on"
        )
    order = np.argsort(-counts, kind="stable")[:wanted].astype(np.int64)
    enough = int((counts >= tail_images).sum())
    if tail and wanted > enough:
        raise InputError(
            f"head {head} + tail {tail} = {wanted} classes, but only {enough} have {tail_images} images or more (class "
            f"{order[-1]} has {counts[order[-1]]}): lower tail_images to {counts[order[-1]]}, or head or tail"
        )
    return order


def choose_images(
    labels: NDArray[np.int64], classes: NDArray[np.int64], head: int, tail_images: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All images of the head classes, and ``tail_images`` of each tail class at random.

    Args:
        labels: (N,) class of each image.
        classes: (H + T,) class ids, the head first.
        head: H.
        tail_images: how many images a tail class keeps; it has at least as many.
        seed: the draw is keyed by (seed, image number).

    Returns:
        ((n,) int64 image numbers, (n,) int64 new classes 0..H+T-1), by new class and then image number.
    """
    new_class = np.full(max(int(labels.max(initial=0)), int(classes.max(initial=0))) + 1, -1, np.int64)
    new_class[classes] = np.arange(len(classes))
    of_image = new_class[labels]
    whole = np.flatnonzero((of_image >= 0) & (of_image < head))
    candidates = np.flatnonzero(of_image >= head)
    draw = keyed.bits(seed, keyed.text_key("tail images"), candidates)
    candidates = candidates[np.lexsort((draw, of_image[candidates]))]
    sizes = np.bincount(of_image[candidates] - head, minlength=len(classes) - head)
    place = np.arange(len(candidates)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.sort(np.concatenate([whole, candidates[place < tail_images]]))
    chosen = chosen[np.argsort(of_image[chosen], kind="stable")]
    return chosen.astype(np.int64), of_image[chosen]


def _size(images: Images, i: int) -> tuple[int, int]:
    encoded = images.encoded(i)
    try:
        return image_size(encoded)
    except InputError as error:
        raise InputError(f"{images.where(i)}: {error}") from None


def _write_classes(path: Path, classes: NDArray[np.int64], kept: NDArray[np.int64], head: int) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["new_class", "old_class", "images", "part"])
        for new, (old, images) in enumerate(zip(classes.tolist(), kept.tolist(), strict=True)):
            writer.writerow([new, old, images, "head" if new < head else "tail"])
