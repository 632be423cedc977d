"""MegaFace's numbers from features: what cleaning does to them, the place of every mate, CMC, TPR at a FPR.

Identification: for every person and every ordered pair (gallery image g, probe p) of theirs, g is put among the N
distractors; its place is the number of distractors that are more like p than g is. Verification: genuine scores are
those pairs', impostor scores those of every probe with every distractor. One pass over the distractors decides both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation.bootstrap import rate_interval, tpr_intervals
from facetrain.evaluation.megaface.files import Features
from facetrain.evaluation.result import Curve, thinned
from facetrain.evaluation.scores import Cell, Rule, deciding_impostors, tpr_at_fpr_split
from facetrain.evaluation.search import Counter, Largest
from facetrain.evaluation.search_blocks import BLOCK, Gallery, scored_blocks
from facetrain.keyed import text_key, uniform

Clean = Literal["insightface", "facex-zoo", "none"]
Ties = Literal["miss", "hit"]
FPRS = (1e-4, 1e-5, 1e-6)
CLEANED_DIM = 513
"""Numbers of features that insightface's script has cleaned: a last one of 100 puts noise far from everything else."""
_JITTER = 0.001
_NOISE = text_key("megaface: noisy probes")
_BELOW_ALL = -4.0  # the score of a distractor that has been put out of reach: below every cosine
_SPARE = 1000  # largest impostor scores beyond those that decide, for the bootstrap


@dataclass(frozen=True)
class Probes:
    """FaceScrub: ``rows`` (Q, D) float32 of length 1 (or 0) and ``people`` (Q,), whom they show, 0..P-1."""

    rows: NDArray[np.float32]
    people: NDArray[np.int64]


@dataclass(frozen=True)
class Outcome:
    """What one number of distractors gave.

    ``places`` (M,) int64 is the place of every mate, 0 for rank-1, and ``owners`` (M,) the person it shows.
    """

    size: int
    places: NDArray[np.int64]
    owners: NDArray[np.int64]
    cells: list[Cell]
    roc: Curve
    intervals: dict[str, tuple[float, float]]

    def rate(self, rank: int) -> float:
        """The share of mates at rank 1..``rank``."""
        return float((self.places < rank).mean())

    def cmc(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(places, rates): the first hundred, then ever fewer up to N; place 0 is rank-1."""
        tail = np.geomspace(100, max(self.size, 100), 100).astype(np.int64)
        at = np.unique(np.concatenate([np.arange(100), tail, [self.size]]))
        at = at[at <= self.size]
        return at, np.searchsorted(np.sort(self.places), at, side="right") / len(self.places)


def unit_features(features: Features, which: NDArray[np.int64]) -> NDArray[np.float32]:
    """Those features, to length 1.

    Raises:
        InputError: one cannot be read, or holds a number that is not finite; says where it lies.
    """
    rows = features.rows(which).astype(np.float32, copy=False)
    squares = np.einsum("ij,ij->i", rows, rows)
    if not np.isfinite(squares).all():
        i = int(which[int(np.argmin(np.isfinite(squares)))])
        raise InputError(f"feature {features.where(i)} holds a number that is not finite; extract it again")
    return np.asarray(rows / np.sqrt(np.where(squares == 0, np.float32(1), squares))[:, None])


def clean_probes(probes: Probes, noisy: NDArray[np.bool_], names: Sequence[str], how: Clean) -> Probes:
    """Replace noisy probes by what their person's clean ones sum up to, at length 1.

    ``insightface`` adds U(-0.001, 0.001) to each number of the sum; here from a key made of the image's name, so that a
    result can be had again. ``facex-zoo`` adds nothing.

    Args:
        probes: of length 1.
        noisy: (Q,) which are.
        names: of the images.
        how: whose way; ``none`` changes nothing.

    Raises:
        InputError: a person has noisy images only.
    """
    if how == "none" or not noisy.any():
        return probes
    rows = probes.rows.copy()
    for i in np.flatnonzero(noisy).tolist():
        own = (probes.people == probes.people[i]) & ~noisy
        if not own.any():
            raise InputError(f"all images of the person of {names[i]} are in the noise list; take them out of the list")
        centre = probes.rows[own].sum(axis=0, dtype=np.float64)
        if how == "insightface":
            draw = uniform(_NOISE, text_key(names[i]), np.arange(len(centre)))
            centre += _JITTER * (2 * draw - 1)
        rows[i] = centre / np.linalg.norm(centre)
    return Probes(rows, probes.people)


class Distractors:
    """Distractors as they are searched: blocks of length 1, noisy ones treated as the way of cleaning says."""

    def __init__(
        self,
        features: Features,
        gone: NDArray[np.bool_],
        noisy: NDArray[np.bool_],
        how: Clean,
        *,
        far: bool = False,
    ) -> None:
        """Take the features and say which are noise.

        Args:
            features: N of them.
            gone: (N,) bool, those without a feature: out of reach of every probe.
            noisy: (N,) bool; ``insightface``: out of reach of every probe, ``facex-zoo``: rows of zeros.
            how: whose way; ``none`` changes nothing.
            far: they come from insightface's script, which has marked noisy ones itself.
        """
        self.features, self.gone, self.how, self.far = features, gone, how, far
        self.noisy = noisy if how != "none" else np.zeros(len(noisy), bool)

    def blocks(self, which: NDArray[np.int64], block: int = BLOCK) -> Iterator[NDArray[np.float32]]:
        """These distractors in blocks of about ``block`` rows; those out of reach are left out."""
        for start in range(0, len(which), block):
            part = which[start : start + block]
            part = part[~self.gone[part]]
            if not len(part):
                continue
            rows = unit_features(self.features, part)
            # A last number of 100 beside 512 that had length 1 together.
            noisy = rows[:, -1] > 0.5 if self.far else self.noisy[part]
            if self.how == "facex-zoo":
                rows[noisy] = 0
            elif noisy.any():
                rows = rows[~noisy]
            yield rows


@dataclass(frozen=True)
class Stage:
    """One number of distractors: ``size`` in all, of which ``added`` come to those of the stage before."""

    size: int
    added: Gallery


def identify(
    probes: Probes,
    stages: Sequence[Stage],
    *,
    ties: Ties = "miss",
    fprs: Sequence[float] = FPRS,
    rule: Rule = "strict",
    world: World | None = None,
) -> Iterator[Outcome]:
    """Search the distractors once; after each stage what they gave so far, the same on every rank.

    Args:
        probes: Q of length 1.
        stages: rising sizes; ``added`` yields this rank's share. Distractors that it leaves out are below every score.
        ties: whether a mate that scores as a distractor does comes after it (``miss``, as in the devkit) or before it
            (``hit``, as in FaceX-Zoo).
        fprs: rates in (0, 1).
        rule: how a rate picks its point of the ROC.
        world: the ranks that share the distractors.

    Raises:
        InputError: nobody has two images, or a feature cannot be used.
    """
    world = world or World()
    limits = mate_scores(probes)
    there = np.isfinite(limits)
    counter = Counter(limits, ties=ties == "miss")
    largest = Largest(_kept(len(probes.rows) * stages[-1].size, fprs, rule))
    for stage in stages:
        problem = ""
        try:
            for at, _, scores in scored_blocks(probes.rows, stage.added, device=world.device):
                counter.take(at, scores)
                largest.take(at, scores)
        except InputError as error:  # a feature of this rank's share; the others wait for it below
            problem = str(error)
        for told in filter(None, world.gather_objects(problem)):
            raise InputError(told)
        counts = world.sum_(torch.from_numpy(counter.counts).to(world.device)).cpu().numpy()
        yield _outcome(stage.size, probes, limits, there, counts, _gathered(largest, world), fprs, rule)


def mate_scores(probes: Probes) -> NDArray[np.float32]:
    """(Q, M) scores of each probe with the other images of its person, filled up with inf.

    Raises:
        InputError: nobody has two images.
    """
    counts = np.bincount(probes.people)
    if counts.max() < 2:
        raise InputError("no person has two images among the probes; identification needs a mate for a probe")
    limits = np.full((len(probes.rows), int(counts.max()) - 1), np.inf, np.float32)
    order = np.argsort(probes.people, kind="stable")
    for own in np.split(order, np.cumsum(counts)[:-1]):
        rows = probes.rows[own]
        for at, start, scores in scored_blocks(rows, rows, block=len(rows)):
            assert start == 0
            for i, row in zip(own[at], scores.numpy(), strict=True):
                limits[i, : len(own) - 1] = row[own != i]
    return limits


def _kept(total: int, fprs: Sequence[float], rule: Rule) -> int:
    """How many of ``total`` impostor scores must be kept: those that decide, and what a bootstrap asks for."""
    return min(total, max(deciding_impostors(total, fprs, rule), int(2 * max(fprs) * total)) + _SPARE)


def _gathered(largest: Largest, world: World) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The largest scores of all ranks and their queries, falling."""
    scores, queries = largest.falling()
    room = world.largest(len(scores))
    if world.size == 1 or room == 0:
        return scores, queries
    total = room * world.size
    short = room - len(scores)
    everyone = [
        world.gather_rows(torch.from_numpy(np.pad(part, (0, short), constant_values=fill)).to(world.device), total)
        for part, fill in ((scores, -np.inf), (queries, 0))
    ]
    scores, queries = everyone[0].cpu().numpy(), everyone[1].cpu().numpy()
    order = np.argsort(-scores, kind="stable")[: largest.k]
    order = order[np.isfinite(scores[order])]
    return scores[order], queries[order]


def _outcome(
    size: int,
    probes: Probes,
    limits: NDArray[np.float32],
    there: NDArray[np.bool_],
    counts: NDArray[np.int64],
    largest: tuple[NDArray[np.float32], NDArray[np.int32]],
    fprs: Sequence[float],
    rule: Rule,
) -> Outcome:
    total = len(probes.rows) * size
    kept = _kept(total, fprs, rule)
    scores, queries = largest[0][:kept], largest[1][:kept]
    if len(scores) < kept:  # distractors out of reach count as impostors that nobody takes for a mate
        rest = kept - len(scores)
        scores = np.append(scores, np.full(rest, _BELOW_ALL, np.float32))
        queries = np.append(queries, np.arange(rest, dtype=np.int32) % len(probes.rows))
    genuine, owners = limits[there], np.broadcast_to(probes.people[:, None], limits.shape)[there]
    places = counts[there]
    people = int(probes.people.max()) + 1
    images = np.bincount(probes.people, minlength=people) * float(size)
    intervals = tpr_intervals(
        genuine,
        owners,
        scores,
        probes.people[queries],
        fprs,
        subjects=people,
        total=lambda weights: np.asarray(weights @ images),
        rule=rule,
    )
    intervals["rank-1"] = rate_interval(places == 0, owners, subjects=people)
    cells = tpr_at_fpr_split(genuine, scores, fprs, rule, impostors=total)
    return Outcome(size, places, owners, cells, _roc(genuine, scores, total), intervals)


def _roc(genuine: NDArray, impostors: NDArray, total: int) -> Curve:
    """The ROC as far as the largest impostor scores (falling) reach; below them nothing is known."""
    distinct = np.flatnonzero(np.append(impostors[1:] != impostors[:-1], len(impostors) == total))
    accepted = np.append(0, distinct + 1)  # how many impostors are accepted at each point
    refused = np.append(impostors, -np.inf)[accepted]
    rising = np.sort(genuine)
    return thinned(accepted / total, 1 - np.searchsorted(rising, refused, side="right") / len(rising))
