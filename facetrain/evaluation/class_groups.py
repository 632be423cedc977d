"""People of a set by the size of the class that they were in training: head and tail, and how far each spreads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.data.dataset import Images, class_counts, list_people, listed_images, open_images
from facetrain.data.outfolder import TRAIN
from facetrain.errors import InputError

_AT_ONCE = 1 << 22  # numbers of the embeddings that are widened to float64 at once


@dataclass(frozen=True)
class Group:
    """Some people of a set: ``name``, "" for everybody, and the numbers ``which`` (n,) of their images, rising."""

    name: str
    which: NDArray[np.int64]


@dataclass(frozen=True)
class Spread:
    """Angles (radians) between images and the mean of the other images of their person.

    ``each`` images of each of ``people`` people were taken; ``std`` is the population's.
    """

    mean: float
    std: float
    people: int
    each: int


def open_labelled(data: Path) -> Images:
    """A .rec, a folder per person or a text list whose lines have labels; InputError where people are not named."""
    images = listed_images(data) if data.is_file() and data.suffix != ".rec" else open_images(data)
    if len(images) and images.labels.min() < 0:
        raise InputError(f"{data}: {images.where(int(images.labels.argmin()))} has no label; write `path label` a line")
    return images


def head_and_tail(data: Path, images: Images, train: Path, threshold: int | None) -> tuple[list[Group], int]:
    """The head and the tail of a set whose people are classes of a training set, without a group that is empty.

    People are the same where their label is; in two folders of people, where their folders have one name.

    Args:
        data: where ``images`` were opened.
        images: the set.
        train: the training set.
        threshold: T: people with more than T training images are head; None: the median of the set's people, so that
            the upper half is head.

    Returns:
        The groups, and T.

    Raises:
        InputError: a label is no class of the training set, or labels cannot be compared.
    """
    trained, train_names = open_labelled(train), _folder_names(train)
    labels, names = images.labels, _folder_names(data)
    counts = class_counts(trained.labels, trained.num_classes)
    if (names is None) != (train_names is None):
        raise InputError(
            f"the labels of {data} and {train} cannot be compared: one is a folder of people, whose labels are places "
            "in its own list; give two folders, or none"
        )
    if names is not None and train_names is not None:
        places = {name: place for place, name in enumerate(train_names)}
        unknown = [name for name in names if name not in places]
        if unknown:
            raise InputError(f"{unknown[0]} of {data} is nobody in {train}, as {len(unknown)} of {len(names)} people")
        labels = np.array([places[name] for name in names])[labels]
    outside = np.flatnonzero((labels < 0) | (labels >= len(counts)))
    if not len(outside):
        outside = np.flatnonzero(counts[labels] == 0)
    if len(outside):
        i = int(outside[0])
        raise InputError(
            f"{images.where(i)}: label {labels[i]} is no class of {train}, which has {int((counts > 0).sum())} with "
            f"images; {len(outside)} of {len(labels)} images are so"
        )
    sizes = counts[labels]
    if threshold is None:
        threshold = int(np.median(counts[np.unique(labels)]))
    groups = [Group("head", np.flatnonzero(sizes > threshold)), Group("tail", np.flatnonzero(sizes <= threshold))]
    return [group for group in groups if len(group.which)], threshold


def _folder_names(data: Path) -> list[str] | None:
    """The people of a folder per person in the order of their labels; None for anything else."""
    return list(list_people(data)) if data.is_dir() and not (data / TRAIN).is_file() else None


def smallest_count(labels: NDArray[np.int64]) -> int:
    """The fewest images that a person with at least two has; 0 where nobody has two."""
    counts = np.unique(labels, return_counts=True)[1]
    return int(counts[counts > 1].min(initial=len(labels) + 1)) if (counts > 1).any() else 0


def spread(rows: NDArray, labels: NDArray[np.int64], which: NDArray[np.int64], each: int) -> Spread:
    """How far people spread: every image's angle to the mean of the others of its person, all with as many images.

    The image is left out of the mean because the mean of n directions lies nearer to its own members, the more so the
    fewer they are: hence, too, the same number for everyone.

    Args:
        rows: (N, D) real and finite, not normalised.
        labels: (N,) who they show.
        which: (n,) rising, the images to look at.
        each: the first so many images of each person in ``which``, at least 2; people with fewer are left out.

    Returns:
        Mean and standard deviation over all of these images; NaN where nobody has as many.
    """
    angles = np.concatenate([np.empty(0), *_angles(rows, _first_of_each(labels, which, each))])
    if not len(angles):
        return Spread(float("nan"), float("nan"), 0, each)
    return Spread(float(angles.mean()), float(angles.std()), len(angles) // each, each)


def _first_of_each(labels: NDArray[np.int64], which: NDArray[np.int64], each: int) -> NDArray[np.int64]:
    """(P, each) the first images of each of the P people that have as many."""
    order = which[np.argsort(labels[which], kind="stable")]
    first, counts = np.unique(labels[order], return_index=True, return_counts=True)[1:]
    return order[first[counts >= each, None] + np.arange(each)]


def _angles(rows: NDArray, taken: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
    """Angles of the images ``taken`` (P, n), some people at a time; a right angle where a direction is missing."""
    step = max(1, _AT_ONCE // max(1, taken.shape[1] * rows.shape[1]))
    for start in range(0, len(taken), step):
        unit = rows[taken[start : start + step]].astype(np.float64)
        _normalise(unit)
        others = unit.sum(axis=1, keepdims=True) - unit
        _normalise(others)
        yield np.arccos(np.einsum("pnd,pnd->pn", unit, others).clip(-1, 1)).ravel()


def _normalise(vectors: NDArray[np.float64]) -> None:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    np.divide(vectors, norms, out=vectors, where=norms > 0)
