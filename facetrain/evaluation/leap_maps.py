"""Maps of a few people's embeddings in the plane (t-SNE), and the angles that such a map cannot show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluation import leap_plots
from facetrain.evaluation.rundir import PeopleMap

MAP_CAPTION = (
    "Filled circles are training images of people with many images (H), crosses of people with few (T), one colour a "
    "person. t-SNE keeps neighbours together; it draws people of whom it has more images larger, and distances between "
    "groups mean little, so the angles are given in numbers."
)


def people_maps(maps: Sequence[tuple[str, PeopleMap]], page: str) -> list[tuple[str, str, str]]:
    """Maps of (title, embeddings) as (title, svg, caption), people of the same class named and coloured alike.

    Maps of which there are too few images, or whose embeddings are all alike, are left out.
    """
    names, colours = _people([one for _, one in maps])
    drawn = []
    for number, (title, one) in enumerate(maps):
        points = layout(one.embeddings, one.labels)
        if points is None:
            continue
        called = [names[int(label)] for label in one.labels]
        of_image = np.array([colours[int(label)] for label in one.labels])
        figure = leap_plots.people_map(points, called, of_image, f"Map of people, {page} {number}")
        drawn.append((title, figure, _distances(one)))
    return drawn


def layout(embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Places (n, 2) of embeddings (n, D) in the plane by t-SNE, always the same; None where there is nothing to place.

    The perplexity, about how many neighbours an image has, is half of what people have images: larger ones would pull
    those with few images into their neighbours.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    rows = np.asarray(embeddings, np.float64)
    if len(rows) < 4 or rows.shape[1] < 2 or np.ptp(rows, axis=0).max() < 1e-6:
        return None
    each = np.median(np.unique(labels, return_counts=True)[1])
    perplexity = float(min(30, max(5, each / 2), (len(rows) - 1) / 3))
    with threadpool_limits(1):  # sums in another order would grow into another picture
        return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(rows)


def _people(maps: Sequence[PeopleMap]) -> tuple[dict[int, str], dict[int, int]]:
    """Class -> name and number of its colour: H1 has the most images of the head, T1 of the tail."""
    found = {
        int(label): (bool(head), int(images))
        for one in maps
        for label, head, images in zip(one.labels, one.head, one.images, strict=True)
    }
    names, colours = {}, {}
    tail = "T" if any(head for head, _ in found.values()) else "P"
    for letter, is_head in (("H", True), (tail, False)):
        mine = sorted((label for label in found if found[label][0] is is_head), key=lambda label: -found[label][1])
        for number, label in enumerate(mine):
            names[label], colours[label] = f"{letter}{number + 1}", number
    return names, colours


def _distances(one: PeopleMap) -> str:
    """Angles that a map cannot show, in words: within a person, and to the nearest image of somebody else."""
    rows = one.embeddings.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    angles = np.degrees(np.arccos(np.clip(rows @ rows.T, -1, 1)))
    same = one.labels[:, None] == one.labels
    pairs = same & ~np.eye(len(rows), dtype=np.bool_)
    parts = []
    for name, mine in (("H", one.head), ("T", ~one.head)) if one.head.any() else (("", ~one.head),):
        within = [angles[label][:, label][pairs[label][:, label]] for label in _members(one.labels, mine)]
        means = [float(each.mean()) for each in within if each.size]
        others = np.where(same, np.inf, angles)[mine].min(axis=1, initial=np.inf)
        counts = one.images[mine]
        text = f"{name} ({_span(counts)} training images a person): " if len(counts) else ""
        if means:
            text += f"{np.mean(means):.1f}° between two images of a person"
            text += f", {others.mean():.1f}° to the nearest of another" if np.isfinite(others).all() else ""
            parts.append(text.strip())
    return "; ".join(parts) + ("." if parts else "")


def _members(labels: NDArray[np.int64], mine: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(labels == label) for label in np.unique(labels[mine])]


def _span(counts: NDArray[np.int64]) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
