"""95 % intervals of the open-set numbers: people are drawn again, see :mod:`facetrain.evaluation.bootstrap`.

A bootstrap adds up the weights of every impostor pair above a threshold in every replicate, and a rate of 1e-1 is
decided by millions of them. Beyond ``LISTED`` pairs, therefore, only every q-th from the largest score down is added
up, for q pairs each. What that adds to an interval is less than another seed of the bootstrap changes
(tests/evaluation/test_openset_intervals.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from facetrain.evaluation.allpairs import AllPairs
from facetrain.evaluation.bootstrap import Total, complete_total, rate_interval, tpr_intervals
from facetrain.evaluation.scores import Rule

LISTED = 1 << 15
"""Impostor pairs whose weights are added up for a rate."""
CHEAP = 1 << 18
"""Same-person pairs up to which intervals take some seconds."""
_WIDE = 0.01  # up to this rate a replicate's threshold may lie as low as at twice the rate
_SPARE = 1000
_PERSON = 6  # what drawing a person costs, measured in same-person pairs


def cheap(genuine: int, people: int) -> bool:
    """Whether intervals of so many same-person pairs of so many people are a matter of seconds."""
    return genuine + _PERSON * people <= CHEAP


def reach(impostor: int, people: int, fpr: float) -> int:
    """How many of the largest of ``impostor`` scores the replicates' thresholds of one rate may lie among.

    Of people drawn again a share accepted moves by some 1 / sqrt(people) of itself, by more where the rate is low and
    few people's scores make it.
    """
    spread = 1.0 if fpr <= _WIDE else min(1.0, 8 / math.sqrt(people))
    return min(impostor, math.ceil((1 + spread) * fpr * impostor) + _SPARE)


def openset_intervals(
    pairs: AllPairs, persons: NDArray[np.int64], fprs: Sequence[float], rule: Rule, listed: int = LISTED
) -> dict[str, tuple[float, float]]:
    """Intervals of TPR@FPR and of rank-1.

    Args:
        pairs: with people, and at least the :func:`reach` largest impostor scores.
        persons: (n,) who each image shows, from 0.
        fprs: rates in (0, 1].
        rule: how a FPR picks its point of the ROC.
        listed: see ``LISTED``.

    Returns:
        By the names that results keep them by; without a rate whose threshold lies below all kept scores in a
        replicate.
    """
    images = np.bincount(persons)
    impostor = int(len(persons) ** 2 - np.square(images).sum()) // 2
    steps: dict[int, list[float]] = {}
    for fpr in sorted(set(fprs), reverse=True):
        steps.setdefault(math.ceil(reach(impostor, len(images), fpr) / listed), []).append(fpr)
    found: dict[str, tuple[float, float]] = {}
    for every, rates in steps.items():
        taken = slice(every // 2, reach(impostor, len(images), rates[0]), every)
        found |= tpr_intervals(
            pairs.genuine,
            pairs.genuine_people,
            pairs.impostor[taken],
            pairs.impostor_people[taken],
            rates,
            subjects=len(images),
            total=_share_of(complete_total(images), every),
            rule=rule,
        )
    return found | {"rank-1": rate_interval(pairs.hits, persons[pairs.mated], subjects=len(images))}


def _share_of(total: Total, every: int) -> Total:
    return lambda weights: total(weights) / every
