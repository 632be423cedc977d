#!/usr/bin/env python
"""One classifier step, forward and backward, beside its matrix products and beside the textbook form.

See docs/benchmarks/README.md for what the sides are.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from benchmark import Timing, in_turns, parser, peak_memory, ratio, report, table
from numpy.typing import NDArray
from torch import Tensor

from facetrain.classifier.partial_fc import PartialFC
from facetrain.config import OptimConfig
from facetrain.config_loss import ClassifierConfig
from facetrain.distributed import World

GEMMS = "the three matrix products alone"
SCALE, MARGIN = 64.0, 0.35


def main() -> None:
    """Measure and report."""
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.memory_of:
        _measure_memory(options.memory_of, options.classes[0], options, device)
        return
    gpu = device.type == "cuda"
    if gpu and options.tf32:
        torch.set_float32_matmul_precision("high")  # as train.tf32 does
    sections = []
    for classes in options.classes + ([500_000] if options.large else []):
        # First the memory, while this process is small itself.
        memory = {name: _memory(name, classes, options) for name in SIDES} if options.memory else {}
        made = {name: build(classes, options, device) for name, build in SIDES.items()}
        timings = in_turns(made, options.rounds, device, warmup=3 if gpu else 1)
        del made
        sections.append(f"## {classes:,} classes\n\n{_table(timings, memory, gpu)}")
        gc.collect()
    clock = "time between CUDA events" if gpu else "CPU seconds"
    precision = ("TF32 products, " if options.tf32 else "float32 products, ") if gpu else ""
    text = (
        f"B = {options.batch}, D = {options.embedding}, CosFace, {precision}{options.rounds} rounds. Times are {clock} "
        "of one step. Memory is the peak of a process that does nothing else, above what it had after the imports.\n\n"
    )
    report("Classifier step", text + "\n\n".join(sections), options.out, device)


def _options() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=5)
    options.add_argument("--classes", type=int, nargs="+", default=[10_000, 100_000])
    options.add_argument("--large", action="store_true", help="500,000 classes too: about 16 GB of memory")
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--embedding", type=int, default=512)
    options.add_argument("--chunk", type=int, default=ClassifierConfig().chunk)
    options.add_argument("--tf32", action="store_true", help="TensorFloat-32 products on the GPU")
    options.add_argument("--no-memory", dest="memory", action="store_false", help="times only")
    options.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    return options.parse_args()


def _table(timings: dict[str, Timing], memory: dict[str, float], gpu: bool) -> str:
    floor = timings[GEMMS].cpu
    header = ["", "ms", "range", "/ matrix products", *([] if gpu else ["ms (wall)"]), *(["MB"] if memory else [])]
    rows = [
        [
            name,
            *t.cpu.scaled(1000).cells(),
            ratio(t.cpu, floor),
            *([] if gpu else t.wall.scaled(1000).cells()[:1]),
            *([f"{memory[name] / 1e6:,.0f}"] if memory else []),
        ]
        for name, t in timings.items()
    ]
    return table(header, rows)


def _inputs(classes: int, options: argparse.Namespace, device: torch.device) -> tuple[Tensor, NDArray[np.int64]]:
    """Embeddings (B, D) and their labels (B,)."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn((options.batch, options.embedding), generator=generator).to(device)
    return embeddings, np.random.default_rng(0).integers(0, classes, options.batch)


def matrix_products(classes: int, options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    """Logits, and their gradients back to embeddings and weights, into memory that is there already."""
    x, _ = _inputs(classes, options, device)
    w = torch.full((classes, options.embedding), 0.01, device=device)
    logits = torch.zeros((options.batch, classes), device=device)
    dx, dw = torch.zeros_like(x), torch.zeros_like(w)

    def step() -> None:
        torch.mm(x, w.T, out=logits)
        torch.mm(logits.T, x, out=dw)
        torch.mm(logits, w, out=dx)

    return step


def sharded(keep_logits: bool, rate: float = 1.0) -> Callable[..., Callable[[], object]]:
    """facetrain's classifier; with a rate below 1 the update of the sampled rows is part of the step."""

    def build(classes: int, options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
        x, labels = _inputs(classes, options, device)
        x.requires_grad_()
        config = ClassifierConfig(sample_rate=rate, keep_logits=keep_logits, chunk=options.chunk)
        classifier = PartialFC(classes, options.embedding, config, OptimConfig(), World(device=device), seed=0)
        steps = iter(range(1_000_000))

        def step() -> None:
            classifier.begin(labels, next(steps))
            classifier.loss(x, labels).backward()
            if rate < 1:
                classifier.step(0.1)
            x.grad = classifier.rows.grad = None  # the other sides need the memory

        return step

    return build


def textbook(classes: int, options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    """Normalise, multiply, subtract the margin at a one-hot matrix, cross-entropy, autograd."""
    x, labels = _inputs(classes, options, device)
    x.requires_grad_()
    w = torch.randn((classes, options.embedding), generator=torch.Generator().manual_seed(0)).to(device)
    w.mul_(0.01).requires_grad_()
    target = torch.from_numpy(labels).to(device)

    def step() -> None:
        cosines = F.linear(F.normalize(x), F.normalize(w))
        one_hot = torch.zeros_like(cosines).scatter_(1, target[:, None], 1.0)
        F.cross_entropy(SCALE * (cosines - MARGIN * one_hot), target).backward()
        x.grad = w.grad = None

    return step


SIDES: dict[str, Callable[..., Callable[[], object]]] = {
    GEMMS: matrix_products,
    "facetrain, logits kept": sharded(keep_logits=True),
    "facetrain, logits recomputed": sharded(keep_logits=False),
    "facetrain, 10 % sampled, with update": sharded(keep_logits=True, rate=0.1),
    "textbook": textbook,
}


def _memory(side: str, classes: int, options: argparse.Namespace) -> float:
    """Bytes at the peak of three steps, in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--memory-of", side, "--classes", str(classes)]
    for name in ("device", "batch", "embedding", "chunk", "threads"):
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
