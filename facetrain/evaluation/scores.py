"""From pair scores to numbers: ROC points, TPR at a FPR, and the ten-fold accuracy of the LFW protocol. NumPy only.

One convention everywhere: a pair is accepted ("same person") when its score is **at or above** the threshold, so pairs
with equal scores are accepted or refused together and a point of the ROC exists only between distinct scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.errors import InputError
from facetrain.evaluation.roc_points import nearest_points, parts, strict_points

Rule = Literal["strict", "nearest"]
FPRS = (1e-4, 1e-3, 1e-2, 1e-1)
FEW = 10
"""A cell decided by fewer impostor pairs than this says so."""
FOLDS = 10
THRESHOLDS = np.arange(0, 4, 0.01)
"""Squared L2 distances that the ten-fold protocol tries."""


@dataclass(frozen=True)
class Cell:
    """One cell of a TPR@FPR table.

    ``fpr`` is the asked rate; ``impostors`` is how many impostor pairs are accepted at ``threshold``, i.e. how many
    scores decided the cell. Where no score obeys the rule the threshold is inf: nobody is accepted.
    """

    fpr: float
    tpr: float
    threshold: float
    impostors: int

    @property
    def few(self) -> bool:
        """Whether fewer than ``FEW`` impostor pairs decided it, so that another draw of pairs could move it a lot."""
        return self.impostors < FEW


@dataclass(frozen=True)
class Roc:
    """Points of the ROC, from (0, 0) at threshold inf to (1, 1); all arrays (P,), thresholds falling."""

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    false_positives: NDArray[np.int64]


@dataclass(frozen=True)
class Folds:
    """Ten-fold accuracy: mean and population standard deviation of ``accuracies``, and each fold's threshold."""

    mean: float
    std: float
    accuracies: NDArray[np.float64]
    thresholds: NDArray[np.float64]


def fpr_text(fpr: float) -> str:
    """A rate as tables write it: ``1e-3``, ``0.05``."""
    mantissa, exponent = f"{fpr:e}".split("e")
    return f"1e{int(exponent)}" if float(mantissa) == 1 and int(exponent) < 0 else f"{fpr:g}"


def _real(values: ArrayLike, what: str) -> NDArray:
    """A list of scores as an array, finite and real."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{what} must be real numbers, not {array.dtype}")
    if not all(np.isfinite(part).all() for part in parts(array)):
        finite = np.isfinite(array)
        first = int(np.argmin(finite))
        raise InputError(
            f"{what} hold {int((~finite).sum())} values of {len(array)} that are not finite, the first "
            f"{array[first]} at pair {first}; look for embeddings that are NaN or infinite"
        )
    return array


def _checked(scores: ArrayLike, same: ArrayLike, what: str) -> tuple[NDArray, NDArray[np.bool_]]:
    shapes, labels = np.shape(scores), np.asarray(same)
    if len(shapes) != 1 or shapes != labels.shape:
        raise InputError(f"{what} {shapes} and same {labels.shape} must be two lists of one length")
    values = _real(scores, what)
    if labels.dtype != np.bool_:
        if not np.isin(labels, (0, 1)).all():
            raise InputError("same must hold true or false (1 or 0) for every pair")
        labels = labels.astype(np.bool_)
    genuine = int(labels.sum())
    if genuine in (0, len(labels)):
        kind = "same-person" if genuine else "different-person"
        raise InputError(f"same: all {len(labels)} pairs are {kind} pairs; both kinds are needed")
    return values, labels


def check_rates(fprs: Sequence[float]) -> None:
    """InputError where a rate lies outside (0, 1]."""
    for fpr in fprs:
        if not 0 < fpr <= 1:
            raise InputError(f"fprs: {fpr:g} must lie in (0, 1]")


def roc(scores: ArrayLike, same: ArrayLike, *, drop_collinear: bool = True) -> Roc:
    """The ROC of pair scores, as ``sklearn.metrics.roc_curve`` gives it (tested against it).

    Args:
        scores: (N,) real, higher means more alike.
        same: (N,) bool.
        drop_collinear: leave out points whose steps to both neighbours are equal (scikit-learn's
            ``drop_intermediate``): the plot is the same, but the ``nearest`` rule then sees fewer points, and published
            tables were made so.

    Raises:
        InputError: lengths differ, a score is not finite, or one of the two kinds of pairs is missing.
    """
    return _roc(*_checked(scores, same, "scores"), drop_collinear)


def _roc(values: NDArray, labels: NDArray[np.bool_], drop_collinear: bool) -> Roc:
    order = np.argsort(values, kind="stable")[::-1]
    falling = values[order]
    last = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)  # last of each run of equal scores
    tps = np.cumsum(labels[order], dtype=np.int64)[last]
    fps = last + 1 - tps
    thresholds = falling[last].astype(np.float64)
    return _points(fps, tps, thresholds, (int(fps[-1]), int(tps[-1])), drop_collinear)


def _points(fps: NDArray, tps: NDArray, thresholds: NDArray, totals: tuple[int, int], drop_collinear: bool) -> Roc:
    """The ROC from impostor and genuine pairs accepted at falling thresholds, of ``totals`` of them."""
    if drop_collinear and len(fps) > 2:
        corner = (np.diff(fps, 2) != 0) | (np.diff(tps, 2) != 0)
        keep = np.concatenate(([True], corner, [True]))
        tps, fps, thresholds = tps[keep], fps[keep], thresholds[keep]
    tps, fps = np.append(0, tps), np.append(0, fps)
    return Roc(fps / totals[0], tps / totals[1], np.append(np.inf, thresholds), fps)


def tpr_at_fpr(scores: ArrayLike, same: ArrayLike, fprs: Sequence[float] = FPRS, rule: Rule = "strict") -> list[Cell]:
    """The TPR@FPR table of pair scores.

    Args:
        scores: (N,) real, higher means more alike.
        same: (N,) bool.
        fprs: rates in (0, 1].
        rule: ``strict``: the lowest threshold whose FPR does not exceed the asked one. ``nearest``: the ROC point
            (collinear points left out) whose FPR is nearest; of two as near the larger FPR, of equal FPRs the larger
            TPR, as insightface's IJB script takes it; it may exceed the asked rate.

    Raises:
        InputError: as :func:`roc`; or a rate outside (0, 1].
    """
    values, labels = _checked(scores, same, "scores")
    check_rates(fprs)
    points = _roc(values, labels, drop_collinear=rule == "nearest")
    return [cell_of(points, point_at(points, fpr, rule), fpr) for fpr in fprs]


def point_at(points: Roc, fpr: float, rule: Rule) -> int:
    """Which point of a ROC a rate picks; see :func:`tpr_at_fpr`."""
    if rule == "strict":
        return int(np.searchsorted(points.fpr, fpr, side="right")) - 1
    away = np.abs(points.fpr - fpr)
    return len(away) - 1 - int(np.argmin(away[::-1]))


def cell_of(points: Roc, at: int, fpr: float) -> Cell:
    """Point ``at`` of a ROC as the cell of an asked rate."""
    return Cell(float(fpr), float(points.tpr[at]), float(points.thresholds[at]), int(points.false_positives[at]))


def deciding_impostors(impostors: int, fprs: Sequence[float], rule: Rule = "strict") -> int:
    """How many of the largest of ``impostors`` scores :func:`tpr_at_fpr_split` needs to see; the others never decide.

    The strict rule looks one score beyond the rate, the nearest beyond twice the rate: there (0, 0) is as near.
    """
    reach = 2 if rule == "nearest" else 1
    return min(impostors, int(reach * max(fprs, default=0) * impostors) + 3)


def tpr_at_fpr_split(
    genuine: ArrayLike,
    impostor: ArrayLike,
    fprs: Sequence[float] = FPRS,
    rule: Rule = "strict",
    impostors: int | None = None,
) -> list[Cell]:
    """What :func:`tpr_at_fpr` gives, for tens of millions of scores: impostors are partitioned instead of sorted.

    Args:
        genuine: (G,) real, the scores of all same-person pairs.
        impostor: (M,) real, those of all different-person pairs; or the largest of them, see ``impostors``.
        fprs: rates in (0, 1].
        rule: see :func:`tpr_at_fpr`.
        impostors: how many impostor scores there are in all, where ``impostor`` is at least the
            :func:`deciding_impostors` largest of them; None: ``impostor`` is all of them.

    Raises:
        InputError: a score is not finite, a kind is missing, a rate lies outside (0, 1], or too few impostor scores.
    """
    for name, shape in (("genuine", np.shape(genuine)), ("impostor", np.shape(impostor))):
        if len(shape) != 1 or not shape[0]:
            raise InputError(f"{name} {shape} must be a list of at least one score")
    own, others = _real(genuine, "genuine"), _real(impostor, "impostor")
    check_rates(fprs)
    total = len(others) if impostors is None else impostors
    needed = deciding_impostors(total, fprs, rule)
    if not needed <= len(others) <= total:
        raise InputError(f"impostor: {len(others)} scores of {total}; the rates need the {needed} largest")
    own = np.sort(own)
    if rule == "nearest":  # points are told apart among scores of both kinds, so both need one type
        common = np.result_type(own, others)
        found = nearest_points(own.astype(common, copy=False), others.astype(common, copy=False), total, fprs)
    else:
        found = strict_points(own, others, total, fprs)
    return [Cell(float(fpr), found[fpr].genuine / len(own), found[fpr].threshold, found[fpr].impostors) for fpr in fprs]


def ten_fold_accuracy(distances: ArrayLike, same: ArrayLike) -> Folds:
    """Verification accuracy as insightface's LFW script computes it.

    The pairs are cut into ten consecutive parts (the first ``N % 10`` one pair longer). Each part is judged at
    the threshold that is most accurate on the others: the first best of 0, 0.01, ... 3.99, a pair being accepted when
    its distance is **below** it. The standard deviation is the population's (ddof 0).

    Args:
        distances: (N,) squared L2 distances of normalised embeddings (2 - 2 cos), in file order.
        same: (N,) bool.

    Raises:
        InputError: lengths differ, a distance is not finite, a kind of pairs is missing, or fewer pairs than folds.
    """
    values, labels = _checked(distances, same, "distances")
    if len(values) < FOLDS:
        raise InputError(f"{len(values)} pairs are too few for {FOLDS} folds; at least one pair a fold is needed")
    lengths = np.full(FOLDS, len(values) // FOLDS)
    lengths[: len(values) % FOLDS] += 1
    ends = np.cumsum(lengths)
    right = np.stack(
        [_right_decisions(values[e - n : e], labels[e - n : e]) for e, n in zip(ends, lengths, strict=True)]
    )
    best = np.argmax(right.sum(axis=0) - right, axis=1)  # (FOLDS,): the sum over all parts but one
    accuracies = right[np.arange(FOLDS), best] / lengths
    return Folds(float(accuracies.mean()), float(accuracies.std()), accuracies, THRESHOLDS[best])


def _right_decisions(distances: NDArray, same: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(400,) number of right decisions at each of ``THRESHOLDS``."""
    genuine, impostor = np.sort(distances[same]), np.sort(distances[~same])
    accepted = np.searchsorted(genuine, THRESHOLDS, side="left")
    return accepted + len(impostor) - np.searchsorted(impostor, THRESHOLDS, side="left")
