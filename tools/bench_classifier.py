#!/usr/bin/env python
"""One classifier step, forward, backward and update, beside its matrix products and two plain ways to write it.

See docs/benchmarks/README.md for what the sides are.
"""

from __future__ import annotations

import argparse
import functools
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmark import Timing, in_turns, parser, peak_memory, ratio, report, table
from numpy.typing import NDArray
from peers import dense, partial_fc
from torch import Tensor

from facetrain.classifier.partial_fc import PartialFC
from facetrain.config import OptimConfig
from facetrain.config_loss import ClassifierConfig, LeapConfig, MarginConfig
from facetrain.distributed import World
from facetrain.longtail.leap import Leap

Build = Callable[[int, argparse.Namespace, torch.device], Callable[[], object]]
THREE, FOUR = "three matrix products", "four matrix products"
UPDATED = "three matrix products, torch.optim.SGD"
FLOORS = {THREE: "/ three", FOUR: "/ four", UPDATED: "/ three, SGD"}
"""What cannot be saved, and the columns that compare with it."""
LR = 0.1
GPU_STEPS = 10
"""In a measurement on a GPU, so that the host prepares a step while the last one runs, as in training."""


def main() -> None:
    """Measure and report."""
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    if options.tf32:
        torch.set_float32_matmul_precision("high")  # as train.tf32 does
    if options.memory_of:
        _measure_memory(options.memory_of, options.classes[0], options, device)
        return
    sections = []
    for classes in options.classes:
        # First the memory, while this process is small itself.
        memory = {name: _memory(name, classes, options) for name in options.sides} if options.memory else {}
        timings = _timings(classes, options, device)
        sections.append(f"## {classes:,} classes\n\n{_table(timings, memory, gpu)}")
        if gpu:
            torch.cuda.empty_cache()
    clock = "time between CUDA events" if gpu else "CPU seconds"
    text = (
        f"B = {options.batch}, D = {options.embedding}, {_products(options)}, {options.rounds} rounds. Times are "
        f"{clock} of one step: forward, backward and the update by SGD with momentum, but for the bare products"
        f"{f', the mean of {GPU_STEPS} in a row' if gpu else ''}. Memory is the peak of a process that does nothing "
        "else, above what it had after the imports.\n\n"
    )
    report("Classifier step", text + "\n\n".join(sections), options.out, device)


def _options() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=5)
    options.add_argument("--classes", type=int, nargs="+", default=[10_000, 100_000])
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--embedding", type=int, default=512)
    options.add_argument("--chunk", type=int, help="classes.chunk, where it is not to be left out")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of ours and the bare products")
    options.add_argument("--tf32", action="store_true", help="TensorFloat-32 for float32 products on the GPU")
    options.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    options.add_argument("--no-memory", dest="memory", action="store_false", help="times only")
    options.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    return options.parse_args()


def _products(options: argparse.Namespace) -> str:
    if options.precision == "bf16":
        return "bfloat16 products with float32 sums"
    return "TensorFloat-32 products" if options.tf32 else "float32 products"


def _timings(classes: int, options: argparse.Namespace, device: torch.device) -> dict[str, Timing]:
    count = GPU_STEPS if device.type == "cuda" else 1
    made = {name: _several(SIDES[name](classes, options, device), count) for name in options.sides}
    timings = in_turns(made, options.rounds, device)
    made.clear()
    _matrices.cache_clear()
    gc.collect()
    return {name: Timing(t.cpu.scaled(1 / count), t.wall.scaled(1 / count)) for name, t in timings.items()}


def _several(step: Callable[[], object], count: int) -> Callable[[], object]:
    def steps() -> None:
        for _ in range(count):
            step()

    return steps


def _table(timings: dict[str, Timing], memory: dict[str, float], gpu: bool) -> str:
    floors = [name for name in FLOORS if name in timings]
    header = ["", "ms", "range", *(FLOORS[name] for name in floors), *([] if gpu else ["ms (wall)"])]
    rows = [
        [
            name,
            *t.cpu.scaled(1000).cells(),
            *(ratio(t.cpu, timings[floor].cpu) for floor in floors),
            *([] if gpu else t.wall.scaled(1000).cells()[:1]),
            *([f"{memory[name] / 1e6:,.0f}"] if memory else []),
        ]
        for name, t in timings.items()
    ]
    return table([*header, *(["MB"] if memory else [])], rows)


def _inputs(classes: int, options: argparse.Namespace, device: torch.device) -> tuple[Tensor, NDArray[np.int64]]:
    """Embeddings (B, D) and their labels (B,)."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn((options.batch, options.embedding), generator=generator).to(device)
    return embeddings, np.random.default_rng(0).integers(0, classes, options.batch)


@functools.lru_cache(maxsize=1)  # all sides that only multiply have the same ones, for the memory
def _matrices(classes: int, batch: int, size: int, precision: str, device: torch.device) -> list[Tensor]:
    """Embeddings, weights, logits and the gradients of the first two."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = (batch, size), (classes, size), (batch, classes), (batch, size), (classes, size)
    return [torch.randn(shape, device=device).mul_(0.01).to(dtype) for shape in shapes]


def products(count: int) -> Build:
    """Logits, once or twice, and their gradients to embeddings and weights, into memory that is there already."""

    def build(classes: int, options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
        x, w, logits, dx, dw = _matrices(classes, options.batch, options.embedding, options.precision, device)

        def step() -> None:
            for _ in range(count - 2):
                torch.mm(x, w.T, out=logits)
            torch.mm(logits.T, x, out=dw)
            torch.mm(logits, w, out=dx)

        return step

    return build


def products_and_update(classes: int, options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    """The three products, then one pass over float32 weights, gradient and momentum: torch's fused SGD."""
    multiply = products(3)(classes, options, device)
    _, w, _, _, dw = _matrices(classes, options.batch, options.embedding, options.precision, device)
    weights = torch.nn.Parameter(w.float())
    weights.grad = dw.float()
    optimizer = torch.optim.SGD([weights], LR, 0.9, weight_decay=5e-4, fused=True)

    def step() -> None:
        multiply()
        optimizer.step()

    return step


def ours(
    keep_gb: float = 4.0, rate: float = 1.0, kind: str = "cosface", leap: bool = False, optim: str = "sgd"
) -> Build:
    """facetrain's classifier; with LEAP a sixth of the rows have clouds, and every fifth step has a synchronisation."""

    def build(classes: int, options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
        x, labels = _inputs(classes, options, device)
        x.requires_grad_()
        config = ClassifierConfig(
            margin=MarginConfig.model_validate({"kind": kind}),
            sample_rate=rate,
            keep_gb=keep_gb,
            chunk=options.chunk,
            precision=options.precision,
        )
        world = World(device=device)
        settings = OptimConfig.model_validate({"name": optim})
        classifier = PartialFC(classes, options.embedding, config, settings, world, seed=0)
        counts = np.where(np.arange(classes) % 6, 100, 5)
        clouds = LeapConfig(variant="vanilla", head_threshold=5) if leap else LeapConfig()
        memory = Leap(clouds, counts, options.embedding, world, 0, 0, classifier.spec.chunk)
        if leap:  # as after many epochs: every class has a variance, every tail class a smaller one
            memory.variance.copy_(torch.from_numpy(np.where(counts > 5, 0.06, 0.03)))
            memory.follow()
        steps = iter(range(1_000_000))

        def step() -> None:
            number = next(steps)
            classifier.begin(labels, number, LR)
            classifier.loss(x, labels, memory.cloud(labels, number, 0)).backward()
            memory.observe(x, labels)
            classifier.step(LR)
            memory.end_step(number + 1)
            x.grad = None

        return step

    return build


def peer(step: Callable[..., Callable[[], object]], rate: float = 1.0) -> Build:
    """One of the plain ways in peers.py, in float32 (or TensorFloat-32) as its projects have it."""

    def build(classes: int, options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
        x, labels = _inputs(classes, options, device)
        return step(classes, x.requires_grad_(), torch.from_numpy(labels).to(device), LR, rate)

    return build


SIDES: dict[str, Build] = {
    THREE: products(3),
    FOUR: products(4),
    UPDATED: products_and_update,
    "facetrain, exponentials kept": ours(keep_gb=1000),
    "facetrain, streamed": ours(keep_gb=0),
    "facetrain, kept, ArcFace": ours(keep_gb=1000, kind="arcface"),
    "facetrain, kept, LEAP": ours(keep_gb=1000, leap=True),
    "facetrain, streamed, AdamW": ours(keep_gb=0, optim="adamw"),
    "facetrain, 10 % sampled": ours(rate=0.1),
    "dense": peer(dense),
    "partial FC": peer(partial_fc),
    "partial FC, 10 % sampled": peer(partial_fc, rate=0.1),
}


def _memory(side: str, classes: int, options: argparse.Namespace) -> float:
    """Bytes at the peak of three steps, in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--memory-of", side, "--classes", str(classes)]
    for name in ("device", "batch", "embedding", "chunk", "threads", "precision"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _measure_memory(side: str, classes: int, options: argparse.Namespace, device: torch.device) -> None:
    SIDES[side](16, options, device)()  # what the first step loads belongs to the program
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = peak_memory(device)
    step = SIDES[side](classes, options, device)
    for _ in range(3):
        step()
    print(peak_memory(device) - before)


if __name__ == "__main__":
    main()
