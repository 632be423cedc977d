"""IJB-B and IJB-C 1:N: probes against two galleries apart, as insightface's ijb_evals.py has it.

Every probe is searched in both galleries. Its subject is in one of them; for the other it is a stranger, whose best
score sets the threshold of a FPIR there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import InputError
from facetrain.evaluation.bootstrap import rate_interval
from facetrain.evaluation.identification import FPIRS, Search, cmc, search, tpir_at_fpir
from facetrain.evaluation.ijb.meta import Enrolled
from facetrain.evaluation.ijb.one_to_one import Findings, Templates
from facetrain.evaluation.ijb.protocol import Protocol
from facetrain.evaluation.result import Curve
from facetrain.evaluation.scores import Cell

RANKS = (1, 5, 10)
_DRAWN = 20  # ranks of the curve


def identify(
    templates: Templates, galleries: Sequence[Enrolled], probes: Enrolled, protocol: Protocol, intervals: bool = True
) -> list[Findings]:
    """The 1:N task: what was found in each gallery, and last both together.

    Together, rank-k is the share over the mated searches of both galleries and TPIR the mean of theirs.

    Args:
        templates: from :func:`facetrain.evaluation.ijb.template_features`.
        galleries: templates of known people.
        probes: templates to search for, each in every gallery.
        protocol: its switches; ranks and TPIR are those of cosines, whose order ``arccos`` leaves as it is.
        intervals: also 95 % intervals by a bootstrap over the probes' subjects, the galleries being what they are.

    Raises:
        InputError: a gallery in which no probe, or every probe, has a mate.
    """
    subjects, people = np.unique(probes.subjects, return_inverse=True)
    rows = templates.rows[probes.rows]
    searches, tables = [], []
    for number, gallery in enumerate(galleries, start=1):
        found = search(rows, probes.subjects, templates.rows[gallery.rows], gallery.subjects)
        mates = int(found.mated.sum())
        if mates in (0, len(found.mated)):
            raise InputError(
                f"gallery {number}: {mates:,} of {len(found.mated):,} probes have a mate in it; an open-set search "
                "needs probes with and without"
            )
        searches.append(found)
        tables.append(
            tpir_at_fpir(found.score[found.mated], found.ranks, found.score[~found.mated], FPIRS, protocol.fpir_rule)
        )
    each = [
        _findings([found], [cells], people, len(subjects), intervals)
        for found, cells in zip(searches, tables, strict=True)
    ]
    return [*each, _findings(searches, tables, people, len(subjects), intervals)]


def _findings(
    searches: Sequence[Search], tables: Sequence[list[Cell]], people: NDArray, count: int, intervals: bool
) -> Findings:
    ranks = np.concatenate([found.ranks for found in searches])
    owners = np.concatenate([people[found.mated] for found in searches])
    curve = cmc(ranks, _DRAWN)
    hits: dict[str, NDArray] = {f"rank-{rank}": ranks <= rank for rank in RANKS}
    metrics = {f"rank-{rank}": float(curve[rank - 1]) for rank in RANKS}
    for i, fpir in enumerate(FPIRS):
        name = f"TPIR@FPIR={fpir:g}"
        metrics[name] = float(np.mean([cells[i].tpr for cells in tables]))
        hits[name] = np.concatenate(
            [
                (found.ranks == 1) & (found.score[found.mated] >= cells[i].threshold)
                for found, cells in zip(searches, tables, strict=True)
            ]
        )
    known = {name: rate_interval(hit, owners, subjects=count) for name, hit in hits.items()} if intervals else {}
    drawn = Curve(tuple(float(rank) for rank in range(1, _DRAWN + 1)), tuple(curve.tolist()))
    return Findings(metrics, (), known, {"cmc": drawn})
