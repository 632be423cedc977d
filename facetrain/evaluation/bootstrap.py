"""95 % intervals of rates by drawing people, not pairs, again: pairs of one person rise and fall together.

One replicate draws as many subjects as there are, with replacement; subject s then counts w_s times. Its genuine pairs
count w_s-fold (the subsets bootstrap of Bolle, Ratha and Pankanti, CVIU 93(1), 2004), an impostor pair of subjects a
and b counts w_a * w_b-fold (the vertex bootstrap of Snijders and Borgatti, Connections 22(2), 1999; Fogliato, Patil
and Perona, IJCV 2024, study it for 1:1 matching), and the threshold is chosen anew. Two draws of one subject make no
pair, neither genuine nor impostor. The interval is the replicates' 2.5 and 97.5 percentile. Products of weights spread
more than people alone do, so where few impostor scores decide a cell it is on the wide side (by a fifth with 18 of
them, by nothing with 180; tests/evaluation/test_bootstrap.py). Where nothing went wrong in the data (a rate of 1) it
has no width, which says only that no failure was seen.

Only the largest impostor scores are needed: below the lowest threshold of any replicate none of them counts. The number
of all impostor pairs under a replicate's weights is exact: :func:`complete_total`, :func:`listed_total`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.errors import InputError
from facetrain.evaluation.result import tpr_name
from facetrain.evaluation.scores import FPRS, Rule
from facetrain.keyed import text_key, uniform

REPLICATES = 500
LEVEL = 0.95
Total = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""(R, S) weights of the subjects in R replicates -> (R,) weight of all impostor pairs."""
_BLOCK = 64  # replicates whose weights are held at once
_MOST_DENSE = 1 << 26  # subject pairs up to which their counts are a matrix; 512 MiB
_AT_ONCE = 1 << 16  # subject pairs of a list whose weights are held at once


def complete_total(images: ArrayLike) -> Total:
    """All impostor pairs where every image (or template) is compared with every other; ``images`` (S,) of a subject."""
    counts = np.asarray(images, np.float64)

    def total(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        weighted = weights * counts
        return (weighted.sum(axis=1) ** 2 - np.square(weighted).sum(axis=1)) / 2

    return total


def listed_total(pairs: ArrayLike, subjects: int) -> Total:
    """All impostor pairs of a protocol that lists them; ``pairs`` (N, 2) holds both subjects of each, from 0."""
    both = np.asarray(pairs).astype(np.int64)
    keys = both.min(axis=1) * subjects + both.max(axis=1)
    if subjects * subjects <= _MOST_DENSE:
        matrix = np.bincount(keys, minlength=subjects * subjects).reshape(subjects, subjects).astype(np.float64)
        return lambda weights: np.asarray(((weights @ matrix) * weights).sum(axis=1))
    distinct, counts = np.unique(keys, return_counts=True)
    first, second = distinct // subjects, distinct % subjects

    def total(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.zeros(len(weights))
        for start in range(0, len(counts), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            found += (weights[:, first[part]] * weights[:, second[part]]) @ counts[part]
        return found

    return total


def tpr_intervals(
    genuine: ArrayLike,
    genuine_subjects: ArrayLike,
    impostors: ArrayLike,
    impostor_subjects: ArrayLike,
    fprs: Sequence[float] = FPRS,
    *,
    subjects: int,
    total: Total | None = None,
    rule: Rule = "strict",
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Intervals of TPR@FPR, under the names that :class:`~facetrain.evaluation.result.Result` keeps them by.

    Args:
        genuine: (P,) all genuine scores, in any order.
        genuine_subjects: (P,) whose they are, 0..subjects-1.
        impostors: (M,) the largest impostor scores, in any order: for the rate f of N pairs about 2 f N and 1,000 more.
        impostor_subjects: (M, 2) both subjects of each; or (M,): impostor i counts as often as its unit is drawn (with
            a unit for every pair this draws pairs, for lists that do not say who is on them).
        fprs: rates in (0, 1].
        subjects: how many there are, S.
        total: the weight of all impostor pairs; None: ``impostors`` are all.
        rule: as :func:`facetrain.evaluation.scores.tpr_at_fpr`; ``nearest`` takes the nearest of all points here, where
            the table leaves out those in line with their neighbours.
        replicates: how many.
        seed: equal seeds give equal intervals.

    Returns:
        A rate is left out where ``impostors`` are too few for a replicate's threshold.

    Raises:
        InputError: lengths do not fit, a score is not finite, a subject or a rate is out of range, or a kind is empty.
    """
    same, owner = _falling(genuine, genuine_subjects, subjects, "genuine")
    other, pairs = _falling(impostors, impostor_subjects, subjects, "impostors")
    if not all(0 < fpr <= 1 for fpr in fprs):
        raise InputError(f"fprs: {', '.join(f'{fpr:g}' for fpr in fprs)} must lie in (0, 1]")
    ends = np.append(np.flatnonzero(other[1:] != other[:-1]), len(other) - 1)  # equal scores are accepted together
    above_next = np.append(np.searchsorted(-same, -other[ends], side="left"), len(same))  # accepted genuine scores
    found = np.full((replicates, len(fprs)), np.nan)
    exhausted = np.zeros(len(fprs), bool)
    row = 0
    for weights in _weights(subjects, replicates, seed):
        totals = total(weights) if total is not None else np.full(len(weights), np.nan)
        for own, everything in zip(weights, totals, strict=True):
            false = np.append(0.0, np.cumsum(own[pairs] if pairs.ndim == 1 else own[pairs].prod(axis=1))[ends])
            true = np.append(0.0, np.cumsum(own[owner]))
            everything = false[-1] if total is None else everything
            if true[-1] and everything:
                at = _points(false, everything, fprs, rule)
                exhausted |= (at == len(ends)) & (false[-1] < everything)
                found[row] = true[above_next[at]] / true[-1]
            row += 1
    return {tpr_name(fpr): _interval(found[:, i]) for i, fpr in enumerate(fprs) if not exhausted[i]}


def rate_interval(
    hits: ArrayLike, owners: ArrayLike, *, subjects: int, replicates: int = REPLICATES, seed: int = 0
) -> tuple[float, float]:
    """The interval of a mean over probes, such as rank-1: all probes of a subject are drawn together.

    The gallery stays as it is: the interval speaks of other probe subjects against this gallery.

    Args:
        hits: (P,) what is averaged, each 0..1 (a hit: 1).
        owners: (P,) the probes' subjects, 0..subjects-1.
        subjects: how many there are.
        replicates: how many.
        seed: equal seeds give equal intervals.

    Raises:
        InputError: lengths do not fit, a value is not finite, a subject is out of range, or there is no probe.
    """
    values, owner = _falling(hits, owners, subjects, "hits")
    hit = np.bincount(owner, values, subjects)
    probes = np.bincount(owner, minlength=subjects)
    rates = []
    for weights in _weights(subjects, replicates, seed):
        drawn = weights @ probes
        rates.append((weights @ hit)[drawn > 0] / drawn[drawn > 0])
    return _interval(np.concatenate(rates))


def _weights(subjects: int, replicates: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each subject is drawn, (R, S) float64, a block of replicates at a time."""
    purpose, column = text_key("bootstrap over subjects"), np.arange(subjects)
    for start in range(0, replicates, _BLOCK):
        rows = [
            np.bincount((uniform(seed, purpose, r, column) * subjects).astype(np.int64), minlength=subjects)
            for r in range(start, min(start + _BLOCK, replicates))
        ]
        yield np.array(rows, np.float64)


def _points(false: NDArray[np.float64], everything: float, fprs: Sequence[float], rule: Rule) -> NDArray[np.int64]:
    """Which ROC point each rate picks; ``false`` (K,) is the impostor weight accepted at each, never falling."""
    asked = np.asarray(fprs, np.float64)
    within = np.searchsorted(false / everything, asked, side="right") - 1
    if rule == "strict":
        return within
    beyond = np.minimum(within + 1, len(false) - 1)
    nearer = np.abs(false[beyond] / everything - asked) <= np.abs(false[within] / everything - asked)
    chosen = false[np.where(nearer, beyond, within)]
    return np.searchsorted(false, chosen, side="right") - 1  # of points with one FPR the one with the largest TPR


def _falling(scores: ArrayLike, owners: ArrayLike, subjects: int, what: str) -> tuple[NDArray, NDArray[np.int64]]:
    """Scores from the largest to the smallest, and whose they are."""
    values, owner = np.asarray(scores, np.float64), np.asarray(owners)
    shapes = [values.shape, (*values.shape, 2)] if what == "impostors" else [values.shape]
    if values.ndim != 1 or owner.shape not in shapes or not len(values):
        raise InputError(f"{what}: {values.shape} scores and {owner.shape} subjects do not fit; one of each is needed")
    if not np.isfinite(values).all():
        raise InputError(f"{what}: {int((~np.isfinite(values)).sum())} of {len(values)} scores are not finite")
    if owner.dtype.kind not in "iu" or owner.min() < 0 or owner.max() >= subjects:
        raise InputError(f"{what}: subjects must be whole numbers from 0 to {subjects - 1}")
    order = np.argsort(-values, kind="stable")
    return values[order], owner[order].astype(np.int64)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        raise InputError("no replicate of the bootstrap held both kinds of pairs; there are too few subjects")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
