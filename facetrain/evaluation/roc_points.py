"""Single points of the ROC of tens of millions of scores, found without sorting them. NumPy only.

A rate decides how many impostor scores lie above its threshold, so a selection of the largest finds it; the rule that
takes the nearest corner of the ROC also looks at the scores around that place, and only those are sorted. Fresh memory
costs more than looking at every score, so that one copy of the scores is all that is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PART = 1 << 16  # scores at a time: what is made of them stays in the processor's cache
_REACH = 2048  # impostor scores on either side of a rate's place that are looked at first
_WIDER = 16


@dataclass(frozen=True)
class Point:
    """How many impostor and genuine scores lie at or above a threshold; inf where nobody is accepted."""

    threshold: float
    impostors: int
    genuine: int


def parts(scores: NDArray) -> Iterator[NDArray]:
    """(N,) scores, some at a time."""
    return (scores[start : start + _PART] for start in range(0, len(scores), _PART))


def largest(scores: NDArray, count: int) -> NDArray:
    """The ``count`` largest of (N,) scores, at least one, in no order; ``scores`` itself where they are all."""
    if count >= len(scores):
        return scores
    return np.partition(scores, len(scores) - count)[len(scores) - count :]


def strict_points(genuine: NDArray, impostor: NDArray, total: int, fprs: Sequence[float]) -> dict[float, Point]:
    """For each rate the lowest threshold at which the impostors' share does not exceed it.

    Args:
        genuine: (G,) rising.
        impostor: the largest of ``total`` impostor scores, one more than the largest rate allows.
        total: how many impostor scores there are.
        fprs: rates in (0, 1].
    """
    found: dict[float, Point] = {}
    for fpr in sorted(set(fprs), reverse=True):  # each rate looks only at what the next larger one has left
        allowed = _allowed(fpr, total)
        impostor = largest(impostor, allowed + 1)
        refused = impostor.min() if allowed < total else None
        above = impostor if refused is None else impostor[impostor > refused]
        first = 0 if refused is None else int(np.searchsorted(genuine, refused, side="right"))
        accepted = [float(scores.min()) for scores in (genuine[first:], above) if len(scores)]
        found[fpr] = Point(min(accepted, default=float("inf")), len(above), len(genuine) - first)
    return found


def _allowed(fpr: float, total: int) -> int:
    """The most impostors of ``total`` whose share, as a float64, does not exceed ``fpr``."""
    count = min(total, int(fpr * total) + 1)
    return next(fewer for fewer in range(count, -1, -1) if fewer / total <= fpr)


def nearest_points(genuine: NDArray, impostor: NDArray, total: int, fprs: Sequence[float]) -> dict[float, Point]:
    """For each rate the corner of the ROC whose FPR is nearest; of two as near the larger FPR, then the larger TPR.

    Args:
        genuine: (G,) rising.
        impostor: the largest of ``total`` impostor scores, down to twice the largest rate and three more.
        total: how many impostor scores there are.
        fprs: rates in (0, 1].
    """
    held, found = impostor, {}
    for fpr in sorted(set(fprs), reverse=True):
        reach, point = _REACH, None
        while point is None:
            place = round(fpr * total)
            above, end = max(0, place - reach), min(len(impostor), place + reach)
            held = largest(held if end <= len(held) else impostor, end)
            window = held if above == 0 else np.partition(held, end - above - 1)[: end - above]
            point = _nearest_corner(genuine, window, above, end == len(impostor), total, fpr)
            reach *= _WIDER
        found[fpr] = point
    return found


def _nearest_corner(
    genuine: NDArray, window: NDArray, above: int, to_the_end: bool, total: int, fpr: float
) -> Point | None:
    """The corner nearest to a rate, or None where one outside the window may be as near.

    Args:
        genuine: (G,) rising.
        window: the impostor scores that follow the ``above`` largest.
        above: how many.
        to_the_end: whether no score follows the window.
        total: how many impostor scores there are.
        fpr: the rate.
    """
    window = np.sort(window)
    low, high = window[0], window[-1]
    first = 0 if to_the_end else np.searchsorted(genuine, low, side="right")
    last = np.searchsorted(genuine, high, side="right") if above else len(genuine)
    seen = window if to_the_end else window[np.searchsorted(window, low, side="right") :]  # others may equal the lowest
    values = np.unique(np.concatenate((seen, genuine[first:last])))[::-1]
    fps = above + len(seen) - np.searchsorted(seen, values)
    tps = len(genuine) - np.searchsorted(genuine, values)
    corner = np.ones(len(values), np.bool_)
    if len(values) > 2:
        corner[1:-1] = (np.diff(fps, 2) != 0) | (np.diff(tps, 2) != 0)
    if above == 0:  # the ROC begins with a point where nobody is accepted
        values, fps, tps = np.append(np.inf, values), np.append(0, fps), np.append(0, tps)
        corner = np.append(True, corner)
    elif len(corner):
        corner[0] = False  # what comes before is not known
    if not to_the_end:
        corner[-1:] = False
    if not corner.any():
        return None
    away = np.abs(fps / total - fpr)
    best = away[corner].min()
    nothing_before = above == 0 or (fps[0] / total <= fpr and away[0] >= best)
    nothing_after = to_the_end or (fps[-1] / total >= fpr and away[-1] > best)
    if not (nothing_before and nothing_after):
        return None
    at = int(np.flatnonzero(corner & (away == best))[-1])
    return Point(float(values[at]), int(fps[at]), int(tps[at]))
