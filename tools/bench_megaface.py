#!/usr/bin/env python
"""MegaFace's search: 3,530 probes against distractors, beside the bare matrix product and faiss's flat index.

See docs/benchmarks/megaface.md for what the sides are. Example: python tools/bench_megaface.py --out megaface.md
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmark import (
    Spread,
    Timing,
    in_turns,
    leave_kernels_to_openblas,
    parser,
    peak_memory,
    ratio,
    report,
    rounded,
    table,
)
from make_megaface_fixture import write_features
from numpy.typing import NDArray

from facetrain.evaluation.megaface.files import FeatureMatrix
from facetrain.evaluation.megaface.scores import Distractors, Probes, Stage, identify
from facetrain.evaluation.search import nearest
from facetrain.evaluation.search_blocks import BLOCK, numpy_multiplies

PROBES, PEOPLE, DIM = 3530, 80, 512
PRODUCT = "the matrix product alone"
OTHER = "the same in the BLAS library that facetrain does not take here"
RANK1 = "facetrain, nearest distractor"
FAISS, OURS = "faiss, flat inner product", f"{RANK1}, in turns with faiss"
WHOLE = "facetrain, the whole protocol"
MOST_SIDES = 100_000
"""Distractors up to which all sides are measured; beyond, those that MegaFace's own size is asked about."""
CORES = ("", "SKYLAKEX", "ZEN", "HASWELL")
"""Kernels of OpenBLAS that faiss is tried with; "" leaves the choice to it."""
_METHOD = """## Method

Random features of length 1 (`make_megaface_fixture.py`): 3,530 probes of 80 people, the same file for all sides. The
sides of facetrain and the matrix product take turns in one process; then faiss, in a process of its own, and facetrain
take turns. Medians of CPU seconds; a ratio is the median of the rounds' ratios.

- *the matrix product alone*: all scores, a block of distractors at a time, into memory that is there already, by the
  library that facetrain takes here; with up to 100,000 distractors also by the other one.
- *nearest distractor*: the distractor with the largest score of each probe, which decides rank-1.
- *the whole protocol*: features made length 1, every mate's place among the distractors (CMC), TPR at a FPR down to
  1e-6, 500 replicates of the bootstrap over people for each interval. The made-up mates score not much more than
  distractors do, which is the slow case: places far from 0 have to be counted.
- *faiss*: `IndexFlatIP.search` for one neighbour; adding the features to the index is not counted."""
_FAISS = """
import sys, time, faiss, numpy as np
probes, threads, count = np.load(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])
distractors = np.load(sys.argv[2], mmap_mode="r")[:count]
faiss.omp_set_num_threads(threads)
index = faiss.IndexFlatIP(probes.shape[1])
for start in range(0, len(distractors), 100_000):
    index.add(np.ascontiguousarray(distractors[start : start + 100_000]))
index.search(probes[:16], 1)
for line in sys.stdin:
    cpu, wall = time.process_time(), time.perf_counter()
    scores, rows = index.search(probes[: int(line)], 1)
    print(time.process_time() - cpu, time.perf_counter() - wall, int(rows.sum()), faiss.__version__, flush=True)
"""


def main() -> None:
    """Draw features, measure, report."""
    options = _options()
    leave_kernels_to_openblas()  # faiss_side chooses for faiss
    torch.set_num_threads(options.threads)
    if options.memory_of:
        _measure_memory(options.memory_of, Path(options.features))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        features = Path(folder) / "features"
        people = np.sort(np.arange(PROBES) % PEOPLE)
        write_features(features, people.tolist(), options.distractors, DIM, seed=0)
        size = options.distractors * DIM * 4
        peaks = {name: _memory(name, features, options) / size for name in ("rank-1", "whole")}
        probes, distractors = np.load(features / "facescrub.npy"), np.load(features / "megaface.npy")
        timings = in_turns(sides(Probes(probes, people), distractors), options.rounds, warmup=options.warmup)
        rival, told = faiss_side(features, options)
        if rival:
            both, found = _with_ours(rival, probes, distractors, options)
            timings |= both
            told += f" facetrain takes {ratio(both[OURS].cpu, both[FAISS].cpu)} times its time, and both {found}."
    text = _text(options, timings, told, peaks)
    report(f"MegaFace: {PROBES:,} probes, {options.distractors:,} distractors, {DIM} numbers", text, options.out)


def _options() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=3, devices=False)
    options.add_argument("--distractors", type=int, default=100_000)
    options.add_argument("--full", action="store_true", help="1,000,000 distractors: 2 GB of disk, 6 GB of memory")
    options.add_argument("--quick", action="store_true", help="10,000 distractors, one round")
    options.add_argument("--folder", type=Path, help="where the features are written for the time being")
    options.add_argument("--warmup", type=int, default=1, help="rounds that do not count")
    options.add_argument("--memory-of", help=argparse.SUPPRESS)
    options.add_argument("--features", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.full:
        chosen.distractors = 1_000_000
    if chosen.quick:
        chosen.distractors, chosen.rounds = 10_000, 1
    return chosen


def sides(probes: Probes, distractors: NDArray[np.float32]) -> dict[str, Callable[[], object]]:
    """What is timed in this process."""
    made: dict[str, Callable[[], object]] = {
        PRODUCT: product(probes.rows, distractors, numpy=numpy_multiplies()),
        RANK1: lambda: nearest(probes.rows, distractors),
        WHOLE: lambda: whole(probes, distractors),
    }
    if len(distractors) > MOST_SIDES:
        return made
    half = distractors.astype(np.float16)
    return made | {
        OTHER: product(probes.rows, distractors, numpy=not numpy_multiplies()),
        "facetrain, nearest distractor, distractors float16": lambda: nearest(probes.rows, half),
        "facetrain, 10 nearest": lambda: nearest(probes.rows, distractors, 10),
    }


def product(probes: NDArray[np.float32], distractors: NDArray[np.float32], numpy: bool) -> Callable[[], object]:
    """All scores, block by block, into memory that is there already; nothing is read out of them."""
    out = np.zeros(len(probes) * BLOCK, np.float32)

    def run() -> None:
        for start in range(0, len(distractors), BLOCK):
            block = distractors[start : start + BLOCK]
            room = out[: len(probes) * len(block)].reshape(len(probes), len(block))
            if numpy:
                np.matmul(probes, block.T, out=room)
            else:
                torch.mm(torch.from_numpy(probes), torch.from_numpy(block).T, out=torch.from_numpy(room))

    return run


def whole(probes: Probes, distractors: NDArray) -> object:
    """Normalising, every mate's place, TPR down to 1e-6, with bootstrap intervals, for one number of distractors."""
    nobody = np.zeros(len(distractors), bool)
    searched = Distractors(FeatureMatrix(distractors, "distractors"), nobody, nobody, "none")
    return list(identify(probes, [Stage(len(distractors), searched.blocks(np.arange(len(distractors))))]))


class Faiss:
    """faiss's flat inner-product index in a process of its own, with a kernel of OpenBLAS of our choice."""

    def __init__(self, core: str, features: Path, options: argparse.Namespace, distractors: int) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
        environment |= {"OMP_NUM_THREADS": str(options.threads)} | ({"OPENBLAS_CORETYPE": core} if core else {})
        files = [str(features / f"{name}.npy") for name in ("facescrub", "megaface")]
        self.core = core
        self.process = subprocess.Popen(
            [sys.executable, "-c", _FAISS, *files, str(options.threads), str(distractors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def search(self, probes: int) -> tuple[float, float, int, str]:
        """(CPU seconds, wall seconds, sum of the rows found, version) of searching for so many probes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{probes}\n")
        self.process.stdin.flush()
        cpu, wall, rows, version = self.process.stdout.readline().split()
        return float(cpu), float(wall), int(rows), version

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def faiss_side(features: Path, options: argparse.Namespace) -> tuple[Faiss | None, str]:
    """faiss with the kernel that a tenth of the probes is fastest with, and a line about it."""
    probe = subprocess.run([sys.executable, "-c", "import faiss"], capture_output=True, check=False)
    if probe.returncode:
        return None, "faiss-cpu is not installed, so it was not measured."
    found: dict[str, float] = {}
    for core in CORES:
        one = Faiss(core, features, options, min(options.distractors, MOST_SIDES))
        *_, version = one.search(PROBES // 10)
        found[core] = min(one.search(PROBES // 10)[0] for _ in range(2))
        one.close()
    best = min(found, key=lambda core: found[core])
    tried = ", ".join(f"{core or 'its own choice'} {rounded(seconds, 3)} s" for core, seconds in found.items())
    told = (
        f"faiss-cpu {version}, OPENBLAS_CORETYPE={best or 'not set'}, the fastest of (a tenth of the probes, at "
        f"most {MOST_SIDES:,} distractors): {tried}."
    )
    return Faiss(best, features, options, options.distractors), told


def _with_ours(
    rival: Faiss, probes: NDArray[np.float32], distractors: NDArray[np.float32], options: argparse.Namespace
) -> tuple[dict[str, Timing], str]:
    """faiss and our search in turns: each round both, so that all meet the same disturbances; and what they found."""
    theirs: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    found: list[int] = []

    def search() -> None:
        found.append(int(nearest(probes, distractors)[1].sum()))

    same = True
    for _ in range(options.warmup + options.rounds):
        cpu, wall, rows, _ = rival.search(PROBES)
        theirs.append((cpu, wall))
        timing = in_turns({RANK1: search}, 1, warmup=0)[RANK1]
        ours.append((timing.cpu.median, timing.wall.median))
        same &= rows == found[-1]
    rival.close()
    made = {FAISS: theirs, OURS: ours}
    timings = {}
    for name, taken in made.items():
        cpus, walls = zip(*taken[options.warmup :], strict=True)
        timings[name] = Timing(Spread(cpus), Spread(walls))
    return timings, "find the same distractors" if same else "do not find the same distractor for every probe"


def _text(options: argparse.Namespace, timings: dict[str, Timing], told: str, peaks: dict[str, float]) -> str:
    floor = timings[PRODUCT].cpu
    scores = 2 * PROBES * options.distractors * DIM / 1e9
    rows = []
    for name, timing in timings.items():
        beside = "" if "faiss" in name else ratio(timing.cpu, floor)
        rows.append([name, *timing.cpu.cells(), rounded(scores / timing.cpu.median, 3), beside])
    library = "NumPy's OpenBLAS" if numpy_multiplies() else "PyTorch's BLAS"
    lines = [
        f"facetrain multiplies with {library} on this processor.",
        "",
        table(["", "CPU s", "range", "GFLOP/s per core", "/ product"], rows),
        "",
        told,
    ]
    lines += [
        "",
        "Peak memory of a process that does nothing else, above what it had after the imports, as a multiple of",
    ]
    lines += [
        f"the distractors' features: nearest distractor {peaks['rank-1']:.2f}, whole protocol {peaks['whole']:.2f}.",
        "",
        _METHOD,
    ]
    return "\n".join(lines)


def _memory(what: str, features: Path, options: argparse.Namespace) -> float:
    """Bytes at the peak, in a process of its own that reads the distractors from a memory map."""
    command = [sys.executable, str(Path(__file__)), "--memory-of", what, "--features", str(features)]
    command += ["--threads", str(options.threads)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _measure_memory(what: str, features: Path) -> None:
    probes = Probes(np.load(features / "facescrub.npy"), np.sort(np.arange(PROBES) % PEOPLE))
    distractors = np.load(features / "megaface.npy", mmap_mode="r")
    nearest(probes.rows[:16], distractors[:16])  # what the first search loads belongs to the program
    before = peak_memory(torch.device("cpu"))
    if what == "rank-1":
        nearest(probes.rows, distractors)
    else:
        whole(probes, distractors)
    print(peak_memory(torch.device("cpu")) - before)


if __name__ == "__main__":
    main()
