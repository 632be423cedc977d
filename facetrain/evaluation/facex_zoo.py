"""The LFW accuracy as FaceX-Zoo's evaluator computes it (``test_protocol/lfw/lfw_evaluator.py``). NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.errors import InputError
from facetrain.evaluation.scores import FOLDS, Folds

_THRESHOLDS = 1000


def facex_zoo_accuracy(scores: ArrayLike, same: ArrayLike) -> Folds:
    """Ten consecutive folds, each judged at the others' threshold of the largest TPR - FPR.

    The thresholds tried are 1000 equal steps over the range of the nine folds' cosines, the first best one counts. A
    pair is right when its cosine lies on its own side of the threshold; one exactly there is wrong whatever it is.

    Args:
        scores: (N,) cosines in file order, at least one of each kind in any nine folds.
        same: (N,) bool.

    Returns:
        ``std`` is the standard error of the mean, ddof 1 over the square root of 10, not a deviation; ``thresholds``
        are squared L2 distances (2 - 2 cos), as everywhere here.

    Raises:
        InputError: fewer pairs than folds, or nine folds without one of the kinds.
    """
    values, labels = np.asarray(scores, np.float64), np.asarray(same).astype(np.bool_)
    if len(values) < FOLDS:
        raise InputError(f"{len(values)} pairs are too few for {FOLDS} folds; at least one pair a fold is needed")
    parts = np.array_split(np.arange(len(values)), FOLDS)
    accuracies, thresholds = np.empty(FOLDS), np.empty(FOLDS)
    for fold, test in enumerate(parts):
        train = np.setdiff1d(np.arange(len(values)), test)
        if len(set(labels[train].tolist())) < 2:
            raise InputError(f"without fold {fold} of {FOLDS} one kind of pairs is missing; FaceX-Zoo's way needs both")
        at = _threshold(values[train], labels[train])
        right = np.where(labels[test], values[test] > at, values[test] < at)
        accuracies[fold], thresholds[fold] = right.mean(), 2 - 2 * at
    error = float(accuracies.std(ddof=1) / np.sqrt(FOLDS))
    return Folds(float(accuracies.mean()), error, accuracies, thresholds)


def _threshold(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    lowest, span = scores.min(), scores.max() - scores.min()
    tried = lowest + span / _THRESHOLDS * np.arange(1, _THRESHOLDS + 1)
    tpr, fpr = (
        (len(kind) - np.searchsorted(np.sort(kind), tried, side="right")) / len(kind)
        for kind in (scores[same], scores[~same])
    )
    return float(tried[np.argmax(tpr - fpr)])
