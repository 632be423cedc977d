"""Searches in a gallery (1:N): ranks, the CMC, and TPIR at a FPIR. NumPy only.

A probe is **mated** where its subject is in the gallery. Ties count against the model: a mate shares its rank with
nobody, whoever scores as high comes before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.errors import InputError
from facetrain.evaluation.scores import Cell

FpirRule = Literal["strict", "exclusive"]
FPIRS = (0.01, 0.1)
NO_FACE = -1.0
"""The cosine of a template without a face with anything: the lowest there is, so that it is never found."""
_CELLS = 1 << 22  # scores in memory at once


@dataclass(frozen=True)
class Search:
    """What every probe found, all (P,): is its subject in the gallery, its score, and its rank.

    ``score`` is the best score with a template of the own subject for a mated probe, with any template for another.
    ``rank`` counts from 1 the templates of other subjects that score as high or higher; 0 for a probe without a mate.
    """

    mated: NDArray[np.bool_]
    score: NDArray[np.float32]
    rank: NDArray[np.int64]

    @property
    def ranks(self) -> NDArray[np.int64]:
        """Ranks of the mated probes."""
        return self.rank[self.mated]


def without_face(templates: NDArray) -> NDArray[np.bool_]:
    """Which rows of (T, D) are zero: the templates none of whose images could be used."""
    return np.asarray(~templates.any(axis=1))


def search(
    probes: NDArray[np.float32], subjects: NDArray, gallery: NDArray[np.float32], enrolled: NDArray, cells: int = _CELLS
) -> Search:
    """Score every probe against every template of a gallery by dot products, in blocks.

    Args:
        probes: (P, D) float32, normalised.
        subjects: (P,) integers, whom each shows.
        gallery: (N, D) float32, normalised. A zero row, here or among the probes, is a template without a face: all of
            its scores are ``NO_FACE``.
        enrolled: (N,) integers, their subjects.
        cells: scores held at once.

    Raises:
        InputError: an empty gallery, no probes, or sizes that do not fit.
    """
    if not len(probes) or not len(gallery) or len(probes) != len(subjects) or len(gallery) != len(enrolled):
        raise InputError(
            f"a search needs probes and a gallery with a subject each; there are {len(probes)} probes with "
            f"{len(subjects)} subjects and {len(gallery)} templates with {len(enrolled)}"
        )
    mated = np.isin(subjects, enrolled)
    no_face, no_face_enrolled = without_face(probes), without_face(gallery)
    score, rank = np.empty(len(probes), np.float32), np.zeros(len(probes), np.int64)
    step = max(1, cells // len(gallery))
    for start in range(0, len(probes), step):
        part = slice(start, start + step)
        similar = probes[part] @ gallery.T
        similar[no_face[part]] = NO_FACE
        similar[:, no_face_enrolled] = NO_FACE
        own = subjects[part, None] == enrolled
        best = np.where(own.any(axis=1), np.where(own, similar, -np.inf).max(axis=1), similar.max(axis=1))
        before = ((similar >= best[:, None]) & ~own).sum(axis=1)
        score[part], rank[part] = best, np.where(mated[part], 1 + before, 0)
    return Search(mated, score, rank)


def cmc(ranks: ArrayLike, largest: int = 10) -> NDArray[np.float64]:
    """The cumulative match characteristic: the share of mated probes with rank 1, 2, ... ``largest`` or better.

    Args:
        ranks: (M,) integers from 1, of mated probes only.
        largest: R.

    Returns:
        (R,) rates; element r - 1 belongs to rank r.

    Raises:
        InputError: no ranks, or one below 1.
    """
    given = np.asarray(ranks)
    if given.ndim != 1 or not len(given) or given.min() < 1:
        raise InputError("a CMC needs the ranks of mated probes, from 1 on, at least one")
    return np.asarray(np.cumsum(np.bincount(np.minimum(given, largest + 1), minlength=largest + 2))[1:-1] / len(given))


def tpir_at_fpir(
    mated: ArrayLike, ranks: ArrayLike, non_mated: ArrayLike, fpirs: Sequence[float] = FPIRS, rule: FpirRule = "strict"
) -> list[Cell]:
    """Open-set identification: how many mated probes find their subject when strangers must not be found.

    A mated probe is a hit when its rank is 1 and its score at or above the threshold; a probe without a mate is a false
    alarm when its best score is (Grother, Ngan and Hanaoka, NISTIR 8271, section 3).

    Args:
        mated: (M,) scores of mated probes with their own subject.
        ranks: (M,) their ranks, from 1.
        non_mated: (N,) the best score of each probe without a mate.
        fpirs: rates in (0, 1].
        rule: ``strict``: the lowest threshold whose FPIR does not exceed the asked rate x. ``exclusive``: the threshold
            lies just above the floor(x N)-th highest non-mated score (the highest, if that is 0), as insightface's
            script has it: one false alarm fewer than asked.

    Returns:
        A :class:`Cell` for each rate: FPIR as ``fpr``, TPIR as ``tpr``, false alarms as ``impostors``.

    Raises:
        InputError: no mated or no non-mated probes, lengths differ, a score is not finite, or a rate outside (0, 1].
    """
    own, order, strangers = np.asarray(mated), np.asarray(ranks), np.asarray(non_mated)
    if own.ndim != 1 or own.shape != order.shape or strangers.ndim != 1 or not len(own) or not len(strangers):
        raise InputError(
            f"TPIR needs scores and ranks of mated probes and scores of others, lists with at least one number; "
            f"there are {own.shape}, {order.shape} and {strangers.shape}"
        )
    for name, scores in (("mated", own), ("non_mated", strangers)):
        if not np.isfinite(scores).all():
            raise InputError(f"{name}: scores that are not finite; look for embeddings that are NaN or infinite")
    falling = np.sort(strangers)[::-1]
    hits = own[order == 1]
    cells = []
    for fpir in fpirs:
        if not 0 < fpir <= 1:
            raise InputError(f"fpirs: {fpir:g} must lie in (0, 1]")
        if rule == "strict":
            refused = int(np.searchsorted(np.arange(1, len(falling) + 1) / len(falling), fpir, side="right"))
        else:
            refused = max(int(len(falling) * fpir) - 1, 0)
        above = falling[refused] if refused < len(falling) else -np.inf  # the highest score that must not be accepted
        accepted, alarms = hits[hits > above], falling[falling > above]
        threshold = min([*accepted.tolist(), *alarms[-1:].tolist()], default=np.inf)
        cells.append(Cell(float(fpir), len(accepted) / len(own), float(threshold), len(alarms)))
    return cells
