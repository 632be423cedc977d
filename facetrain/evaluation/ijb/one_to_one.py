"""IJB-B and IJB-C from features of images: templates, the 1:1 table, and what both tasks share. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import InputError
from facetrain.evaluation.bootstrap import tpr_intervals
from facetrain.evaluation.identification import without_face
from facetrain.evaluation.ijb.meta import Faces, Pairs
from facetrain.evaluation.ijb.pair_scores import pair_scores
from facetrain.evaluation.ijb.protocol import FPRS, Protocol
from facetrain.evaluation.ijb.templates import group, pool, refuse_not_finite
from facetrain.evaluation.result import Curve, Histogram, thinned
from facetrain.evaluation.scores import Cell, tpr_at_fpr_split

_INTERVAL_FPRS = tuple(fpr for fpr in FPRS if fpr <= 1e-2)  # above, millions of scores decide and nothing moves
_MOST_SUBJECTS = 1 << 13  # whose pairs are counted in a matrix
_BINS, _SHOWN_BINS = 1 << 16, 128
_PART = 1 << 20  # pairs at a time


@dataclass(frozen=True)
class Templates:
    """T vectors of length 1, (T, D) float32, and (T,) their numbers, rising; zeros where no image is readable."""

    rows: NDArray[np.float32]
    ids: NDArray[np.int64]

    @property
    def without_face(self) -> NDArray[np.int64]:
        """Numbers of the templates that are nobody's."""
        return self.ids[without_face(self.rows)]


@dataclass(frozen=True)
class Findings:
    """What goes into a :class:`~facetrain.evaluation.result.Result` from scores alone."""

    metrics: dict[str, float] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    histogram: Histogram | None = None


def template_features(
    features: NDArray, faces: Faces, protocol: Protocol, readable: NDArray[np.bool_] | None = None
) -> Templates:
    """Pool images to templates as a protocol says.

    Args:
        features: (N, D) real, not normalised, row i of image i; mirrored images are added already.
        faces: the images.
        protocol: its switches.
        readable: (N,) bool, rows to look at; None: all.

    Raises:
        InputError: sizes do not fit, a row is not finite (named), or no template has a readable image.
    """
    if features.ndim != 2 or len(features) != len(faces.names):
        raise InputError(f"features {features.shape} for {len(faces.names):,} images; expected (N, D), a row per image")
    grouping = group(faces.templates, faces.media, readable)
    with np.errstate(over="ignore", invalid="ignore"):
        rows = pool(
            features,
            grouping,
            faces.detector if protocol.detector_score else None,
            unit_images=not protocol.keep_norm,
            unit_media=protocol.unit_media,
            fusion=protocol.template,
        )
    if not np.isfinite(rows).all():
        refuse_not_finite(features, grouping.order, faces.names)
        raise InputError("the embeddings are so large that their sums overflow; expected numbers below 1e15")
    templates = Templates(rows, grouping.ids)
    if len(templates.without_face) == len(rows):
        raise InputError(f"none of the {len(rows):,} templates has a readable face")
    return templates


def compare(
    templates: Templates, pairs: Pairs, protocol: Protocol, subjects: NDArray[np.int64] | None = None
) -> Findings:
    """The 1:1 task: TPR@FPR of all pairs, ROC and histogram. A template without a face is accepted with nobody.

    Args:
        templates: from :func:`template_features`.
        pairs: rows of them.
        protocol: its switches.
        subjects: (T,) whom each template shows, from 0, for intervals by a bootstrap over subjects; None: no intervals.
    """
    kinds = slice(pairs.genuine), slice(pairs.genuine, None)
    genuine, impostor = (pair_scores(templates.rows, pairs.first[kind], pairs.second[kind]) for kind in kinds)
    if protocol.score == "arccos":
        _to_angles(genuine)
        _to_angles(impostor)
    cells = tuple(tpr_at_fpr_split(genuine, impostor, FPRS, protocol.fpr_rule))
    own, other = _counts(genuine), _counts(impostor)
    curve = _roc(own, other)
    intervals = _intervals(genuine, impostor, pairs, protocol, subjects) if subjects is not None else {}
    return Findings({}, cells, intervals, {"roc": curve}, _histogram(own, other))


def _to_angles(cosines: NDArray[np.float32]) -> None:
    """cosine -> 1 - angle / pi, in place."""
    np.clip(cosines, -1, 1, out=cosines)
    np.arccos(cosines, out=cosines)
    cosines /= np.float32(-np.pi)
    cosines += 1


def _counts(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Scores in ``_BINS`` bins from -1 to 1."""
    counts = np.zeros(_BINS, np.int64)
    for start in range(0, len(scores), _PART):
        place = ((scores[start : start + _PART] + 1) * (_BINS / 2)).astype(np.int32)
        counts += np.bincount(place.clip(0, _BINS - 1, out=place), minlength=_BINS)
    return counts


def _roc(genuine: NDArray[np.int64], impostor: NDArray[np.int64]) -> Curve:
    """The ROC at the edges of the bins, where it is exact."""
    true, false = (np.append(0, np.cumsum(counts[::-1])) for counts in (genuine, impostor))
    return thinned(false / false[-1], true / true[-1])


def _histogram(genuine: NDArray[np.int64], impostor: NDArray[np.int64]) -> Histogram:
    edges = np.linspace(-1, 1, _SHOWN_BINS + 1)
    own, other = (counts.reshape(_SHOWN_BINS, -1).sum(axis=1) for counts in (genuine, impostor))
    seen = np.flatnonzero(own + other)
    part = slice(int(seen[0]), int(seen[-1]) + 1)
    return Histogram(
        tuple(edges[part.start : part.stop + 1].tolist()), tuple(own[part].tolist()), tuple(other[part].tolist())
    )


def _intervals(
    genuine: NDArray[np.float32],
    impostor: NDArray[np.float32],
    pairs: Pairs,
    protocol: Protocol,
    subjects: NDArray[np.int64],
) -> dict[str, tuple[float, float]]:
    count = int(subjects.max()) + 1
    if count > _MOST_SUBJECTS:
        return {}
    wanted = min(len(impostor), int(2 * _INTERVAL_FPRS[-1] * len(impostor)) + 1000)
    lowest = np.partition(impostor, len(impostor) - wanted)[len(impostor) - wanted]
    top = np.flatnonzero(impostor >= lowest)
    first, second = pairs.first[pairs.genuine :], pairs.second[pairs.genuine :]
    known = np.zeros((count, count))
    for start in range(0, len(impostor), 4 * _PART):
        part = slice(start, start + 4 * _PART)
        places = subjects[first[part]] * count + subjects[second[part]]
        known += np.bincount(places, minlength=count * count).reshape(count, count)
    return tpr_intervals(
        genuine,
        subjects[pairs.first[: pairs.genuine]],
        impostor[top],
        np.stack([subjects[first[top]], subjects[second[top]]], axis=1),
        _INTERVAL_FPRS,
        subjects=count,
        total=lambda weights: np.asarray(((weights @ known) * weights).sum(axis=1)),
        rule=protocol.fpr_rule,
    )
