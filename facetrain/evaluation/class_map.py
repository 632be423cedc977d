"""The embeddings of a few head and tail people as a training run leaves them, to be drawn as a map (LEAP's Fig. 1)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from facetrain import keyed
from facetrain.atomic import replacing
from facetrain.data.dataset import Images, class_counts
from facetrain.data.encoded import Encoded
from facetrain.data.images import Buffer
from facetrain.distributed import World
from facetrain.evaluation.extract import Unreadable, embed_blocks

PEOPLE, PHOTOS = 8, 20
"""Of each group, and at most of each person."""


class Chosen(Encoded):
    """Some of the images of a set, ``numbers`` of them, in that order."""

    def __init__(self, images: Encoded, numbers: NDArray[np.int64]) -> None:
        """Choose; nothing is read."""
        self.images, self.numbers = images, numbers

    def __len__(self) -> int:
        """How many were chosen."""
        return len(self.numbers)

    def encoded(self, i: int) -> Buffer:
        """The encoded bytes of chosen image i."""
        return self.images.encoded(int(self.numbers[i]))

    def where(self, i: int) -> str:
        """Where chosen image i lies."""
        return self.images.where(int(self.numbers[i]))

    def to_pixels(self, encoded: Buffer, out: NDArray[np.uint8]) -> None:
        """Decode as the whole set does."""
        self.images.to_pixels(encoded, out)


def map_people(counts: NDArray[np.int64], threshold: int | None, seed: int) -> tuple[NDArray[np.int64], int]:
    """Which people are drawn: (classes, how many of them, the first, are head people).

    Args:
        counts: (C,) training images of each class.
        threshold: head people have more images; None: the median of the classes with two and more.
        seed: of the choice.
    """
    several = np.flatnonzero(counts >= 2)  # one point is no cloud
    if threshold is None:
        threshold = int(np.median(counts[several])) if len(several) else 0
    order = several[np.argsort(keyed.bits(seed, keyed.text_key("people of the map"), several), kind="stable")]
    head, tail = (order[mask][:PEOPLE] for mask in (counts[order] > threshold, counts[order] <= threshold))
    return np.concatenate([head, tail]), len(head)


def write_map(
    output: Path,
    step: int,
    backbone: nn.Module,
    images: Images,
    *,
    threshold: int | None,
    seed: int,
    input_size: int,
    world: World,
) -> str | None:
    """Embed the training images of a few people by all ranks and keep them as ``OUTPUT/leap/map_%08d.npz``.

    The file holds ``embeddings`` (n, D) float32 normalised, ``labels`` (n,) int64, ``head`` (n,) bool and ``images``
    (n,) int64, the training images of that person. An image that cannot be read is left out.

    Returns:
        A warning where the file could not be written; None otherwise.
    """
    counts = class_counts(images.labels, images.num_classes)
    people, heads = map_people(counts, threshold, seed)
    numbers = [np.flatnonzero(images.labels == person)[:PHOTOS] for person in people]
    if not numbers:
        return None
    chosen = Chosen(images, np.concatenate(numbers))
    unreadable: list[Unreadable] = []
    blocks = embed_blocks(backbone, chosen, input_size=input_size, unreadable=unreadable, flip=False, world=world)
    rows, labels = np.concatenate(list(blocks)), images.labels[chosen.numbers]
    if world.rank:
        return None
    if unreadable:
        there = ~np.isnan(rows).any(1)
        rows, labels = rows[there], labels[there]
    path = output / "leap" / f"map_{step:08d}.npz"
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as growing, growing.open("wb") as file:
            np.savez(
                file,
                embeddings=rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12),
                labels=labels,
                head=np.isin(labels, people[:heads]),
                images=counts[labels],
            )
    except OSError as error:
        return f"warning: {path} was not written: {error.strerror}; training goes on"
    return None
