"""The numbers of the open-set protocol from embeddings: TPR@FPR over all pairs, rank-1, TPIR@FPIR, angular spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import InputError
from facetrain.evaluation.allpairs import (
    BIN,
    HALF,
    AllPairs,
    all_pairs,
    binned_cells,
    pair_counts,
    roc_of_bins,
    scales,
    unit_rows,
)
from facetrain.evaluation.class_groups import Group, spread
from facetrain.evaluation.identification import search, tpir_at_fpir
from facetrain.evaluation.largest import MOST_PEOPLE
from facetrain.evaluation.openset_intervals import cheap, openset_intervals, reach
from facetrain.evaluation.result import Curve, Histogram, thinned, tpr_name
from facetrain.evaluation.scores import Cell, Rule, deciding_impostors, tpr_at_fpr_split
from facetrain.keyed import bits, text_key

Method = Literal["exact", "histogram"]
Switches = dict[str, str | int | float | bool]
FPRS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FPIRS = (0.01, 0.1)
MOST_KEPT = 1 << 26
"""Scores that the exact method keeps at most: 256 MiB, and twice as much again while the cells are found.

Half as many with intervals: with each score who is on the pair.
"""
TOO_LOW = " too low by at most"
"""End of the figures that bound the histogram method's error."""
_PROBES = 8192  # probes searched at once


@dataclass(frozen=True)
class Protocol:
    """The switches of the open-set protocol.

    Attributes:
        flip: the embedding of the mirrored image is added.
        rule: how a FPR picks its point of the ROC.
        method: ``exact``, or ``histogram``, which keeps no scores: thresholds lie on edges of bins of width ``BIN``,
            and a strict cell says by how much its TPR is too low at most.
        fprs: rates of the table; those that not even one impostor pair would decide are left out, but the largest.
        fpirs: rates of the open-set search.
        seed: of the draw of people and gallery images.
        intervals: of TPR@FPR and rank-1, over people; None: where they cost some seconds at most. The histogram method
            has none.
    """

    flip: bool = True
    rule: Rule = "strict"
    method: Method = "exact"
    fprs: Sequence[float] = FPRS
    fpirs: Sequence[float] = FPIRS
    seed: int = 0
    intervals: bool | None = None


@dataclass(frozen=True)
class Scored:
    """The numbers of one group, as :class:`facetrain.evaluation.result.Result` holds them."""

    metrics: dict[str, float]
    cells: tuple[Cell, ...]
    roc: Curve
    histogram: Histogram
    switches: Switches
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def check_group(labels: NDArray[np.int64], group: Group, protocol: Protocol) -> None:
    """InputError where a group cannot be scored so: no pairs of a kind, or more scores to keep than may be."""
    genuine, impostor = pair_counts(labels[group.which])
    people = len(np.unique(labels[group.which]))
    what = f"the {group.name} people" if group.name else "the people"
    if not genuine or not impostor:
        raise InputError(
            f"{what} are {people} with {len(group.which)} images: {genuine} same-person and {impostor} "
            "different-person pairs; at least one of each is needed"
        )
    if protocol.intervals and protocol.method == "histogram":
        raise InputError("--intervals needs the scores, which --method histogram does not keep; leave one of them out")
    if protocol.intervals and people > MOST_PEOPLE:
        raise InputError(f"{what} are {people:,}; --intervals can tell {MOST_PEOPLE:,} apart")
    wanted = _wants_intervals(genuine, impostor, people, protocol)
    kept = _kept(genuine, impostor, people if wanted else 0, protocol)
    if protocol.method == "exact" and kept > MOST_KEPT:
        remedy = "--no-intervals, or --method histogram" if wanted else "--method histogram"
        raise InputError(
            f"{what} make {genuine:,} same-person pairs and {impostor:,} others, of which the exact method would keep "
            f"{kept:,} numbers ({kept * 4 / 1e9:.1f} GB); use {remedy}"
        )


def _wants_intervals(genuine: int, impostor: int, people: int, protocol: Protocol) -> bool:
    """Whether a group gets intervals; where that is left open, if time, memory and numbers of people allow it."""
    if protocol.intervals is not None or protocol.method == "histogram":
        return bool(protocol.intervals)
    return cheap(genuine, people) and people <= MOST_PEOPLE and _kept(genuine, impostor, people, protocol) <= MOST_KEPT


def _kept(genuine: int, impostor: int, people: int, protocol: Protocol) -> int:
    """Numbers of four bytes that the exact method keeps of pairs; ``people`` is 0 without intervals."""
    return (genuine + _keep(impostor, people, protocol)) * (2 if people else 1)


def _rates(impostor: int, protocol: Protocol) -> list[float]:
    """The rates that at least one of so many impostor pairs decides; at least the largest."""
    falling = sorted(set(protocol.fprs), reverse=True)
    return falling[:1] + [fpr for fpr in falling[1:] if fpr * impostor >= 1]


def _keep(impostor: int, people: int, protocol: Protocol) -> int:
    """How many impostor scores are kept; ``people`` is 0 without intervals."""
    fprs = _rates(impostor, protocol)
    deciding = deciding_impostors(impostor, fprs, protocol.rule)
    return max([deciding, *(reach(impostor, people, fpr) for fpr in fprs if people)])


def score_group(
    rows: NDArray,
    labels: NDArray[np.int64],
    group: Group,
    protocol: Protocol,
    *,
    each: int,
    where: Callable[[int], str] = "row {}".format,
    progress: Callable[[int], None] | None = None,
) -> Scored:
    """All numbers of one group of people, as if there were no others.

    Args:
        rows: (N, D) real, not normalised.
        labels: (N,) who they show.
        group: which of them.
        protocol: the switches.
        each: images of each person that the angular spread takes.
        where: how a message names an image.
        progress: told how many more pairs are done.

    Raises:
        InputError: as :func:`check_group`; or an embedding is not finite.
    """
    check_group(labels, group, protocol)
    genuine, impostor = pair_counts(labels[group.which])
    persons = np.unique(labels[group.which], return_inverse=True)[1]
    people = int(persons.max()) + 1
    wanted = _wants_intervals(genuine, impostor, people, protocol)
    pairs = all_pairs(
        rows,
        labels,
        which=group.which,
        keep=_keep(impostor, people if wanted else 0, protocol) if protocol.method == "exact" else None,
        people=wanted,
        where=where,
        progress=progress,
    )
    cells, bounds = _cells(pairs, impostor, protocol)
    found, sizes, alarms = open_search(rows, labels, group.which, protocol, where)
    angles = spread(rows, labels, group.which, each)
    switches: Switches = {"flip": protocol.flip, "FPR rule": protocol.rule, "method": protocol.method}
    switches |= {"bin width": BIN} if protocol.method == "histogram" else {}
    switches |= {"people": people, "genuine pairs": genuine, "impostor pairs": impostor}
    switches |= {"angle people": angles.people, "angle images of each": each}
    spreads = {"angle mean (rad)": angles.mean, "angle std (rad)": angles.std} if angles.people else {}
    points = roc_of_bins(pairs)
    return Scored(
        {"rank-1": pairs.rank1} | found,
        tuple(cells),
        thinned(points.fpr, points.tpr),
        _histogram(pairs),
        switches | sizes,
        {name: round(value, 6) for name, value in spreads.items()} | bounds | alarms,
        openset_intervals(pairs, persons, [cell.fpr for cell in cells], protocol.rule) if wanted else {},
    )


def _cells(pairs: AllPairs, impostor: int, protocol: Protocol) -> tuple[list[Cell], dict[str, float]]:
    """The TPR@FPR table, and the bounds of the histogram method's errors."""
    fprs = _rates(impostor, protocol)
    if protocol.method == "exact":
        return tpr_at_fpr_split(pairs.genuine, pairs.impostor, fprs, protocol.rule, impostor), {}
    found = binned_cells(pairs, fprs, protocol.rule)
    strict = protocol.rule == "strict"
    bounds = {f"{tpr_name(cell.fpr)}{TOO_LOW}": round(error, 9) for cell, error in found if strict}
    return [cell for cell, _ in found], bounds


def draw_gallery(
    labels: NDArray[np.int64], which: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Who is enrolled in the open-set search: (gallery images, probe images), numbers as in ``which``, rising.

    Of the people with two or more images half, rounded down but at least one, is enrolled with one image each; both are
    drawn by ``seed``, person's label and the image's place among the person's. All other images are probes, those of
    people who are not enrolled without a mate.
    """
    order = which[np.argsort(labels[which], kind="stable")]
    people, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    able = np.flatnonzero(counts > 1)
    drawn = np.argsort(bits(seed, text_key("open set: people"), people[able]), kind="stable")
    enrolled = able[drawn[: max(1, len(able) // 2)]]
    place = bits(seed, text_key("open set: image"), people[enrolled]) % counts[enrolled].astype(np.uint64)
    gallery = np.sort(order[first[enrolled] + place.astype(np.int64)])
    return gallery, np.setdiff1d(which, gallery)


def open_search(
    rows: NDArray,
    labels: NDArray[np.int64],
    which: NDArray[np.int64],
    protocol: Protocol,
    where: Callable[[int], str] = "row {}".format,
) -> tuple[dict[str, float], Switches, dict[str, float]]:
    """TPIR@FPIR of a search among the people that :func:`draw_gallery` enrols, who was searched for, and false alarms.

    The strict rule of :func:`facetrain.evaluation.identification.tpir_at_fpir` is used.
    """
    gallery, probes = draw_gallery(labels, which, protocol.seed)
    enrolled = unit_rows(rows, gallery, scales(rows, gallery, where))
    parts = [probes[a : a + _PROBES] for a in range(0, len(probes), _PROBES)]
    found = [
        search(unit_rows(rows, part, scales(rows, part, where)), labels[part], enrolled, labels[gallery])
        for part in parts
    ]
    mated, score, rank = (np.concatenate([getattr(one, name) for one in found]) for name in ("mated", "score", "rank"))
    cells = tpir_at_fpir(score[mated], rank[mated], score[~mated], protocol.fpirs)
    switches: Switches = {
        "gallery": len(gallery),
        "mated probes": int(mated.sum()),
        "non-mated probes": int((~mated).sum()),
        "seed": protocol.seed,
    }
    alarms = {f"false alarms at FPIR={cell.fpr:g}": float(cell.impostors) for cell in cells}
    return {f"TPIR@FPIR={cell.fpr:g}": cell.tpr for cell in cells}, switches, alarms


def _histogram(pairs: AllPairs) -> Histogram:
    """Both kinds of scores in some 32 to 64 equal bins over the range that holds any, fewer where it is very narrow."""
    fine = (pairs.genuine_bins, pairs.impostor_bins)
    held = np.flatnonzero(fine[0] + fine[1])
    span = int(held[-1] - held[0]) + 1
    width = 1 << max(0, span.bit_length() - 6)
    starts = np.arange(int(held[0]) // width, int(held[-1]) // width + 1) * width
    coarse = (np.add.reduceat(bins, starts) for bins in fine)
    edges = (np.append(starts, starts[-1] + width) - HALF) / HALF
    return Histogram(*(tuple(values.tolist()) for values in (edges, *coarse)))
