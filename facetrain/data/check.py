"""``facetrain data check``: does every image decode, are the labels in range, and how are the images shared out?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.data.dataset import Images, class_counts, open_images
from facetrain.data.images import decode
from facetrain.data.progress import default_workers, ordered_map, progress
from facetrain.data.recordio import scan
from facetrain.errors import InputError

TAIL_IMAGES = 5
_CHUNK = 256


@dataclass(frozen=True)
class CheckReport:
    """What was found.

    Attributes:
        path: the data that were checked.
        images: N, the damaged ones too.
        people: C.
        empty: classes without an image.
        smallest, median, largest: images per person.
        head, tail: people with more than, and with 1 to, five images.
        sizes: "WIDTH x HEIGHT" -> images, most frequent first.
        damaged: images that do not decode.
        out_of_range: labels outside 0..C-1.
        broken: places of a .rec whose framing is wrong: bytes that belong to no record, records that overlap.
        problems: one line for each of the first ten problems, with record number and byte, or path.
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
    plot: Path | None = None

    def raise_if_damaged(self) -> None:
        """InputError in one line with the first problem, where there is one; for after the summary."""
        if self.problems:
            raise InputError(
                f"{self.path} has {self.damaged} damaged images, {self.out_of_range} labels out of range and "
                f"{self.broken} badly framed records; the first: {self.problems[0]}"
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
        InputError: ``path`` cannot be opened at all.
    """
    broken = _scan(Path(path))
    try:
        images = open_images(path)
    except InputError as error:
        if not broken:
            raise
        raise InputError(f"{error} ({len(broken)} damaged records in all)") from None
    labels = np.asarray(images.labels)
    wrong = np.flatnonzero((labels < 0) | (labels >= images.num_classes))
    expected = f"is outside 0..{images.num_classes - 1}"
    problems = [(int(i), f"{images.where(int(i))}: label {labels[i]} {expected}") for i in wrong[:10]]
    sizes, damaged, undecodable = _decode_all(images, workers or default_workers(len(images)))
    counts = class_counts(np.delete(labels, wrong), images.num_classes)
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
        damaged=damaged,
        out_of_range=len(wrong),
        broken=len(broken),
        problems=(*broken, *(message for _, message in sorted(problems + undecodable)))[:10],
        plot=plot,
    )


def _scan(path: Path) -> list[str]:
    """Badly framed places of a .rec, one line each; none for a folder of people."""
    path = path / "train.rec" if path.is_dir() else path
    if path.suffix != ".rec" or not path.is_file():
        return []
    found: list[str] = []
    with progress("scanning", None, "records") as advance:
        for number, record in enumerate(scan(path), start=1):
            if record.problem is not None:
                found.append(f"{path.name} record {record.number} at byte {record.byte}: {record.problem}")
            if number % 1000 == 0:
                advance(1000)
    return found


def _decode_all(images: Images, workers: int) -> tuple[Counter[str], int, list[tuple[int, str]]]:
    """(sizes, number of damaged images, the first ten of them as (image number, message))."""
    sizes: Counter[str] = Counter()
    damaged = 0
    first: list[tuple[int, str]] = []
    starts = range(0, len(images), _CHUNK)
    with progress("checking", len(images)) as advance:
        for start, (found, bad) in zip(
            starts, ordered_map(_decode_chunk, starts, workers, _set_images, (images,)), strict=True
        ):
            sizes.update(found)
            damaged += len(bad)
            first += bad[: max(0, 10 - len(first))]
            advance(min(_CHUNK, len(images) - start))
    return sizes, damaged, first


_images: Images | None = None


def _set_images(images: Images) -> None:
    global _images
    _images = images


def _decode_chunk(start: int) -> tuple[Counter[str], list[tuple[int, str]]]:
    assert _images is not None
    sizes: Counter[str] = Counter()
    bad: list[tuple[int, str]] = []
    for i in range(start, min(start + _CHUNK, len(_images))):
        try:
            encoded = _images.encoded(i)
        except InputError as error:
            bad.append((i, str(error)))
            continue
        try:
            height, width = decode(encoded).shape[:2]
            sizes[f"{width} x {height}"] += 1
        except InputError as error:
            bad.append((i, f"{_images.where(i)}: {error}"))
    return sizes, bad


def plot_classes(counts: NDArray[np.int64], output: Path) -> Path:
    """Draw (C,) images per person as a long-tail curve and as a histogram into a PNG; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    curve, histogram = figure.subplots(1, 2)
    ranked = np.sort(counts)[::-1]
    curve.fill_between(np.arange(1, ranked.size + 1), ranked, step="mid", alpha=0.4)
    curve.plot(np.arange(1, ranked.size + 1), ranked, drawstyle="steps-mid")
    curve.set(xlabel="people, most images first", ylabel="images")
    curve.set_title(f"{counts.sum():,} images, {counts.size:,} people")
    curve.set_xlim(0.5, ranked.size + 0.5)
    largest = int(counts.max(initial=1))
    if largest > 50:
        curve.set_yscale("symlog", linthresh=1)
        edges: NDArray[Any] = np.unique(np.geomspace(1, largest + 1, 41).astype(int)) - 0.5
        histogram.set_xscale("log")
    else:
        edges = np.arange(largest + 2) - 0.5
    histogram.hist(counts, bins=edges)
    histogram.set(xlabel="images per person", ylabel="people", title="how many people have so many images")
    for axes in (curve, histogram):
        axes.grid(alpha=0.3)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, format="png", dpi=110)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror}; choose another place for the plot") from None
    return output
