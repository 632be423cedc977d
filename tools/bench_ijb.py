#!/usr/bin/env python
"""IJB-C from features to the 1:1 table, beside the bare BLAS work and beside insightface's way of doing it.

Features and pairs have the official sizes (469,375 images, 23,124 templates, 15,658,489 pairs) and are made up in
memory. insightface's side is its algorithm written plainly, on a stated part of the work, extrapolated.

Example: python tools/bench_ijb.py --out ijb.md      (4 GB of memory; --quick: a tenth of everything)
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from benchmark import Spread, Timing, in_turns, leave_kernels_to_openblas, parser, peak_memory, ratio, rounded, table
from benchmark import report as write_report
from make_ijb_fixture import GENUINE, PAIRS, Layout, full_layout
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from facetrain.evaluation.ijb.meta import Faces, Pairs
from facetrain.evaluation.ijb.one_to_one import Templates, compare, template_features
from facetrain.evaluation.ijb.pair_scores import pair_scores
from facetrain.evaluation.ijb.protocol import FPRS, protocol_of
from facetrain.evaluation.ijb.templates import _CHUNK
from facetrain.evaluation.scores import Cell, tpr_at_fpr_split

D = 512
PART_TEMPLATES, PART_PAIRS = 2_000, 1_000_000
"""What insightface's side really does; scores of all pairs go through its ROC."""
_ROWS = 1024  # of a block of the bare product; fewer are slower
PROTOCOL = protocol_of()


@dataclass(frozen=True)
class Work:
    """One made-up data set; ``sides`` are the numbers of templates that occur first and second in pairs."""

    features: NDArray[np.float32]
    faces: Faces
    pairs: Pairs
    sides: tuple[int, int]


def main() -> None:
    """Make the data, time all sides in turns, measure memory in a process of its own, report."""
    options = parser("", rounds=5, devices=False)
    options.description = __doc__
    options.add_argument("--quick", action="store_true", help="a tenth of images, templates and pairs, one round")
    options.add_argument("--no-memory", action="store_true")
    chosen = options.parse_args()
    leave_kernels_to_openblas()
    share, rounds = (10, 1) if chosen.quick else (1, chosen.rounds)
    with threadpool_limits(chosen.threads):
        text = times(made_up(share), rounds)
    if not chosen.no_memory:
        text += "\n\n" + memory(share, chosen.threads)
    size = f"{469_375 // share:,} images, {PAIRS // share:,} pairs"
    write_report(f"IJB-C 1:1, features to table: {size}", text, chosen.out)


def made_up(share: int) -> Work:
    """Features, images and pairs laid out as the official lists are: galleries by probes, a fifth of all cells."""
    rng = np.random.default_rng(0)
    layout = full_layout(rng)
    if share > 1:
        kept = layout.template <= len(layout.kind) // share
        few = np.sort(rng.permutation(len(layout.kind))[: len(layout.kind) // share])
        layout = Layout(layout.subject[few], layout.kind[few], layout.template[kept], layout.medium[kept])
    count = len(layout.template)
    pairs = made_up_pairs(layout, rng, share)  # before there are features, so that the peak is not this one's
    people = rng.standard_normal((int(layout.subject.max()) + 1, D), dtype=np.float32)
    features = rng.standard_normal((count, D), dtype=np.float32)
    features *= 2.5
    for start in range(0, count, 1 << 14):
        part = slice(start, start + (1 << 14))
        features[part] += people[layout.subject[layout.template[part] - 1]]
    detector = rng.uniform(0.1, 1, count).astype(np.float32)
    none = np.zeros((0, 5, 2), np.float32)
    faces = Faces([""] * count, none, detector, layout.template, layout.medium)
    return Work(features, faces, pairs, (len(np.unique(pairs.first)), len(np.unique(pairs.second))))


def made_up_pairs(layout: Layout, rng: np.random.Generator, share: int) -> Pairs:
    """As :func:`facetrain.evaluation.ijb.meta.read_pairs` gives them."""
    enrolled, probes = (np.flatnonzero(layout.kind == 2 if last else layout.kind < 2) for last in (False, True))
    own = dict(zip(layout.subject[enrolled].tolist(), enrolled.tolist(), strict=True))
    mates = [(own[s], p) for s, p in zip(layout.subject[probes].tolist(), probes.tolist(), strict=True) if s in own]
    genuine = np.array(sorted(mates[: GENUINE // share]), np.int32)
    drawn = np.sort(rng.integers(0, len(enrolled) * len(probes), PAIRS // share - len(genuine)))
    first, second = enrolled[drawn // len(probes)], probes[rng.permutation(len(probes))[drawn % len(probes)]]
    return Pairs(
        np.concatenate((genuine[:, 0], first)).astype(np.int32),
        np.concatenate((genuine[:, 1], second)).astype(np.int32),
        len(genuine),
    )


def with_curves(work: Work) -> object:
    """The same with all else that goes into a result from scores alone: the ROC and the histogram."""
    return compare(template_features(work.features, work.faces, PROTOCOL), work.pairs, PROTOCOL)


def ours(work: Work) -> list[Cell]:
    """What ``facetrain eval ijbc`` does from features to cells."""
    return cells_of(work, *scores_of(work, template_features(work.features, work.faces, PROTOCOL)))


def scores_of(work: Work, templates: Templates) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Genuine and impostor scores."""
    pairs, cut = work.pairs, work.pairs.genuine
    genuine = pair_scores(templates.rows, pairs.first[:cut], pairs.second[:cut])
    return genuine, pair_scores(templates.rows, pairs.first[cut:], pairs.second[cut:])


def cells_of(work: Work, genuine: NDArray[np.float32], impostor: NDArray[np.float32]) -> list[Cell]:
    """The table."""
    return tpr_at_fpr_split(genuine, impostor, FPRS, PROTOCOL.fpr_rule)


def bare(work: Work) -> None:
    """The matrix products alone: each 128 rows of features by their weights, and the galleries by the probes."""
    pool_alone(work)
    product_alone(work)


def pool_alone(work: Work) -> None:
    """One pass over the features by BLAS."""
    per_product = max(1, round(_CHUNK * sum(work.sides) / len(work.features)))
    weights = np.ones((per_product, _CHUNK), np.float32)
    for start in range(0, len(work.features) - _CHUNK + 1, _CHUNK):
        weights @ work.features[start : start + _CHUNK]


def product_alone(work: Work) -> None:
    """All galleries by all probes, a block of the result at a time."""
    gallery, probes = work.features[: work.sides[0]], work.features[-work.sides[1] :]
    out = np.empty((_ROWS, len(probes)), np.float32)
    for start in range(0, len(gallery), _ROWS):
        block = gallery[start : start + _ROWS]
        np.matmul(block, probes.T, out=out[: len(block)])


def parts_of(work: Work) -> dict[str, Any]:
    """The three steps of ours and the two of the bare work."""
    templates = template_features(work.features, work.faces, PROTOCOL)
    scores = scores_of(work, templates)
    return {
        "images to templates": lambda: template_features(work.features, work.faces, PROTOCOL),
        "scores of all pairs": lambda: scores_of(work, templates),
        "TPR at six FPRs": lambda: cells_of(work, *scores),
        "bare: one pass over the features": lambda: pool_alone(work),
        "bare: galleries by probes": lambda: product_alone(work),
    }


def insightface(work: Work, rounds: int) -> tuple[dict[str, Timing], dict[str, Spread]]:
    """Timings of parts of eval_ijbc.py's algorithm, and CPU seconds extrapolated to all of the work."""
    templates = template_features(work.features, work.faces, PROTOCOL)
    scores = np.concatenate(scores_of(work, templates)).astype(np.float64)
    same = np.arange(len(scores)) < work.pairs.genuine
    rows = templates.rows.astype(np.float64)
    count, chosen = min(PART_TEMPLATES, len(rows)), batches(len(scores))
    weighted = work.features * work.faces.detector[:, None]
    timed = in_turns(
        {
            "images to templates": lambda: their_pooling(weighted, work.faces, count),
            "scores of all pairs": lambda: their_scores(rows, work.pairs, chosen),
        },
        rounds,
        warmup=0,
    )
    timed |= in_turns({"TPR at six FPRs": lambda: their_table(scores, same)}, 1, warmup=0)
    factors = (len(rows) / count, len(scores) / sum(map(len, chosen)), 1.0)
    return timed, {name: one.cpu.scaled(by) for (name, one), by in zip(timed.items(), factors, strict=True)}


def their_pooling(weighted: NDArray[np.float32], faces: Faces, count: int) -> None:
    """A search through all images for every template and through its own for every medium; sums in float64."""
    known = np.unique(faces.templates)
    pooled = np.zeros((len(known), D))
    for row, template in enumerate(known[:count]):
        (own,) = np.where(faces.templates == template)
        mine, media = weighted[own], faces.media[own]
        means = [np.mean(mine[np.where(media == medium)[0]], axis=0, keepdims=True) for medium in np.unique(media)]
        pooled[row] = np.sum(np.array(means), axis=0)
    pooled[:count] / np.linalg.norm(pooled[:count], axis=1, keepdims=True)


def batches(pairs: int) -> list[range]:
    """Batches of 100,000 pairs from all over the list, about ``PART_PAIRS`` pairs together."""
    every = [range(start, min(start + 100_000, pairs)) for start in range(0, pairs, 100_000)]
    return every[:: max(1, pairs // PART_PAIRS)]


def their_scores(rows: NDArray[np.float64], pairs: Pairs, chosen: list[range]) -> None:
    """A batch of pairs at a time: both sides gathered in float64 with an axis too many, multiplied, summed."""
    place = np.arange(len(rows))[:, None]
    scores = np.zeros(len(pairs.first))
    for batch in chosen:
        part = slice(batch.start, batch.stop)
        left, right = rows[place[pairs.first[part]]], rows[place[pairs.second[part]]]
        scores[part] = np.sum(left * right, -1).flatten()


def their_table(scores: NDArray[np.float64], same: NDArray[np.bool_]) -> list[float]:
    """scikit-learn's ROC, and for every rate a search through all of its points as a list of pairs."""
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(same, scores)
    fpr, tpr = np.flipud(fpr), np.flipud(tpr)
    return [tpr[min(list(zip(abs(fpr - rate), range(len(fpr)), strict=True)))[1]] for rate in FPRS]


def times(work: Work, rounds: int) -> str:
    """All sides in turns, as three tables."""
    made = {"ours": lambda: ours(work), "curves": lambda: with_curves(work), "bare": lambda: bare(work)}
    timings = in_turns(made, rounds)
    steps = in_turns(parts_of(work), rounds)
    theirs, extrapolated = insightface(work, 1)
    whole, floor = timings["ours"].cpu, timings["bare"].cpu
    rows = [
        ["features to table", *whole.cells(3), ratio(whole, floor)],
        ["with the ROC and the histogram", *timings["curves"].cpu.cells(3), ratio(timings["curves"].cpu, floor)],
        ["the bare products", *floor.cells(3), "1"],
    ]
    text = table(["", "CPU s", "range", "times the bare products"], rows) + "\n\n"
    text += table(["step", "CPU s", "range"], [[name, *one.cpu.cells(3)] for name, one in steps.items()]) + "\n\n"
    header = ["insightface's algorithm", "CPU s of the part", "all of it, extrapolated", "times ours"]
    lines = []
    for name, spread in extrapolated.items():
        times_ours = rounded(spread.median / steps[name].cpu.median, 3)
        lines.append([name, rounded(theirs[name].cpu.median, 3), rounded(spread.median, 3), times_ours])
    total = sum(spread.median for spread in extrapolated.values())
    lines.append(["together", "", rounded(total, 3), rounded(total / whole.median, 3)])
    done = sum(map(len, batches(len(work.pairs.first))))
    parts = (
        f"The parts: {PART_TEMPLATES:,} templates, {done:,} pairs in batches from all over the list, the whole of the "
        "table. Pairs stand in the order of their first template, so that one of the two rows is mostly in the "
        "processor's cache; in a list in any order this algorithm takes longer."
    )
    return f"{text}{table(header, lines)}\n\n{parts}"


def memory(share: int, threads: int) -> str:
    """Peak of a process that does ours once, beside the features."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_measure, args=(share, threads, there))
    process.start()
    features, imports, peak = here.recv()
    process.join()
    rows = [
        ["the features", rounded(features / 1e6), "1"],
        ["peak, less the imports", rounded((peak - imports) / 1e6), f"{(peak - imports) / features:.2f}"],
        ["peak of the process", rounded(peak / 1e6), f"{peak / features:.2f}"],
    ]
    return table(["memory, pairs and features included", "MB", "times the features"], rows)


def _measure(share: int, threads: int, answer: Connection) -> None:
    import torch

    imports = peak_memory(torch.device("cpu"))
    with threadpool_limits(threads):
        work = made_up(share)
        ours(work)
    answer.send((work.features.nbytes, imports, peak_memory(torch.device("cpu"))))


if __name__ == "__main__":
    main()
