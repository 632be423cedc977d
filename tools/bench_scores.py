#!/usr/bin/env python
"""TPR@FPR of as many scores as IJB-C 1:1 has: partitioned, beside scikit-learn's roc_curve; the cells must be equal.

Example: python tools/bench_scores.py --out scores.md      (some 2 GB of memory, two minutes)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import sklearn
from benchmark import in_turns, ratio, rounded, table
from benchmark import report as write_report
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from facetrain.evaluation.scores import Rule, tpr_at_fpr, tpr_at_fpr_split

PAIRS, GENUINE = 15_658_489, 19_557
FPRS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
Rates: TypeAlias = list[tuple[float, float]]
"""(TPR, FPR) of each cell."""


def main() -> None:
    """Draw scores, time each rule's sides in turns, compare what they found, report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, default=PAIRS)
    options.add_argument("--genuine", type=int, default=GENUINE)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--quick", action="store_true", help="a thirtieth of the pairs, three rounds: ten seconds")
    options.add_argument("--out", type=Path, help="write the report there too; a bare name goes to docs/benchmarks/")
    chosen = options.parse_args()
    part, rounds = (30, 3) if chosen.quick else (1, chosen.rounds)
    pairs, genuine = chosen.pairs // part, chosen.genuine // part
    scores, same = drawn(pairs, genuine)
    text = "\n\n".join(compared(scores, same, rule, rounds) for rule in ("strict", "nearest"))
    write_report(f"TPR@FPR at six rates of {pairs:,} scores, {genuine:,} of them genuine", text, chosen.out)


def drawn(pairs: int, genuine: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores (N,) with the spread of cosines in 512 dimensions, genuine ones higher, and which are genuine, mixed."""
    rng = np.random.default_rng(0)
    same = np.zeros(pairs, np.bool_)
    same[rng.choice(pairs, genuine, replace=False)] = True
    scores = rng.normal(0, 0.06, pairs)
    scores[same] = rng.normal(0.5, 0.15, genuine)
    return scores.clip(-1, 1).astype(np.float32), same


def compared(scores: NDArray[np.float32], same: NDArray[np.bool_], rule: Rule, rounds: int) -> str:
    """One rule's table."""
    genuine, impostor = scores[same], scores[~same]

    def ours_split() -> Rates:
        return [(cell.tpr, cell.impostors / len(impostor)) for cell in tpr_at_fpr_split(genuine, impostor, FPRS, rule)]

    def ours_with_splitting() -> Rates:
        cells = tpr_at_fpr_split(scores[same], scores[~same], FPRS, rule)
        return [(cell.tpr, cell.impostors / len(impostor)) for cell in cells]

    def ours_sorting() -> Rates:
        return [(cell.tpr, cell.impostors / len(impostor)) for cell in tpr_at_fpr(scores, same, FPRS, rule)]

    sides: dict[str, Callable[[], Rates]] = {
        f"scikit-learn {sklearn.__version__} roc_curve, then the cells": lambda: by_scikit_learn(scores, same, rule),
        "facetrain tpr_at_fpr, which sorts all": ours_sorting,
        "facetrain tpr_at_fpr_split, kinds apart already": ours_split,
        "facetrain tpr_at_fpr_split, telling them apart first": ours_with_splitting,
    }
    found = {name: side() for name, side in sides.items()}
    first = next(iter(found.values()))
    for name, rates in found.items():
        if rates != first:
            raise SystemExit(f"{rule}: {name} finds {rates}, scikit-learn {first}")
    taken = in_turns(sides, rounds, warmup=0)
    floor = next(iter(taken.values())).cpu
    rows = [
        [name, *timing.cpu.scaled(1000).cells(3), rounded(timing.wall.scaled(1000).median, 3), ratio(floor, timing.cpu)]
        for name, timing in taken.items()
    ]
    columns = [f"rule: {rule}", "cpu ms", "range", "wall ms", "times as fast (cpu)"]
    return table(columns, rows) + "\n\nAll four find the same TPR and FPR in every cell."


def by_scikit_learn(scores: NDArray[np.float32], same: NDArray[np.bool_], rule: Rule) -> Rates:
    """The cells from scikit-learn's points: all of them for the strict rule, without collinear ones for the nearest."""
    fpr, tpr, _ = roc_curve(same, scores, drop_intermediate=rule == "nearest")
    found = []
    for asked in FPRS:
        if rule == "strict":
            at = int(np.searchsorted(fpr, asked, side="right")) - 1
        else:
            at = len(fpr) - 1 - int(np.argmin(np.abs(fpr - asked)[::-1]))
        found.append((float(tpr[at]), float(fpr[at])))
    return found


if __name__ == "__main__":
    main()
