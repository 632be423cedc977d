#!/usr/bin/env python
"""What LEAP adds to a classifier step and to its memory, beside the same step without it.

A round is ``leap.sync_interval`` steps, so that the update of centres and angles has its share. As in the paper's
<H5K, T20K>, four of five classes are tail with 5 images, the others have 100: one image in six is of a tail class, and
each of those gets a cloud, which is the most that ``leap.variant: vanilla`` can ask for.
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
from benchmark import Timing, in_turns, parser, peak_memory, ratio, report, table
from numpy.typing import NDArray

from facetrain.classifier.partial_fc import PartialFC
from facetrain.config import OptimConfig
from facetrain.config_loss import ClassifierConfig, LeapConfig
from facetrain.distributed import World
from facetrain.longtail.leap import Leap

HEAD_IMAGES, TAIL_IMAGES = 100, 5
INTERVAL = 5
OFF = "LEAP off"
SIDES = {
    OFF: LeapConfig(),
    "LEAP, a draw for every logit": LeapConfig(variant="vanilla", head_threshold=TAIL_IMAGES),
    "LEAP, one draw a row": LeapConfig(variant="vanilla", head_threshold=TAIL_IMAGES, cloud_noise="per_sample"),
}


def main() -> None:
    """Measure and report."""
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.tf32:
        torch.set_float32_matmul_precision("high")  # as train.tf32 does
    if options.memory_of:
        _measure_memory(options, device)
        return
    sections = []
    for classes in options.classes:
        memory = {name: _memory(name, classes, options) for name in options.sides} if options.memory else {}
        classifier = _classifier(classes, options, device)  # one for all sides: a million classes are 4 GB
        made = {name: build(name, classifier, options) for name in options.sides}
        timings = in_turns(made, options.rounds, device, warmup=1)
        state = _state_bytes(classes, options)
        del made, classifier
        sections.append(f"## {classes:,} classes\n\n{_table(timings, memory)}\n\n{state}")
        gc.collect()
    clock = "time between CUDA events" if device.type == "cuda" else "CPU seconds"
    text = (
        f"G = {options.batch}, D = {options.embedding}, CosFace, classifier in {options.precision}"
        f"{' (TensorFloat-32)' if options.tf32 else ''}, {options.rounds} rounds. Times are {clock} of a step, "
        f"the mean of {INTERVAL} with their one synchronisation; forward, backward and update of the classifier, no "
        "backbone. Memory is the peak of a process that does nothing else, above what it had after the imports.\n\n"
    )
    report("LEAP's cost", text + "\n\n".join(sections), options.out, device)


def _options() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=5)
    options.add_argument("--classes", type=int, nargs="+", default=[100_000])
    options.add_argument("--batch", type=int, default=512)
    options.add_argument("--embedding", type=int, default=512)
    options.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the classifier")
    options.add_argument("--tf32", action="store_true", help="TensorFloat-32 products on the GPU")
    options.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="which, LEAP off among them")
    options.add_argument("--no-memory", dest="memory", action="store_false", help="times only")
    options.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    return options.parse_args()


def _counts(classes: int) -> NDArray[np.int64]:
    """Training images of each class; every fifth is head."""
    return np.where(np.arange(classes) % 5 == 0, HEAD_IMAGES, TAIL_IMAGES)


def _labels(classes: int, options: argparse.Namespace) -> NDArray[np.int64]:
    """(steps, G) labels, each class as often as it has images."""
    draw = np.random.default_rng(0)
    head = draw.random((INTERVAL, options.batch)) < HEAD_IMAGES / (HEAD_IMAGES + 4 * TAIL_IMAGES)
    fifth = draw.integers(0, classes // 5, head.shape) * 5
    return np.where(head, fifth, fifth + draw.integers(1, 5, head.shape))


def _classifier(classes: int, options: argparse.Namespace, device: torch.device) -> PartialFC:
    config = ClassifierConfig(precision=options.precision)
    return PartialFC(classes, options.embedding, config, OptimConfig(), World(device=device), seed=0)


def build(side: str, classifier: PartialFC, options: argparse.Namespace) -> Callable[[], object]:
    """A whole interval of steps."""
    world, classes = classifier.world, classifier.num_classes
    x = torch.randn((options.batch, options.embedding), generator=torch.Generator().manual_seed(0)).to(world.device)
    x.requires_grad_()
    counts = _counts(classes)
    leap = Leap(SIDES[side], counts, options.embedding, world, 0, 0, classifier.spec.chunk)
    labels = _labels(classes, options)
    if leap.active:  # as after many epochs: every class has a variance, every tail class a smaller one
        leap.variance.copy_(torch.from_numpy(np.where(counts > TAIL_IMAGES, 0.06, 0.03)))
        leap.follow()

    def interval() -> None:
        for step in range(INTERVAL):
            classifier.begin(labels[step], step, 0.1)
            classifier.loss(x, labels[step], leap.cloud(labels[step], step, 0)).backward()
            leap.observe(x, labels[step])
            classifier.step(0.1)
            leap.end_step(step + 1)
            x.grad = None

    return interval


def _table(timings: dict[str, Timing], memory: dict[str, float]) -> str:
    base = timings[OFF].cpu
    rows = [
        [
            name,
            *t.cpu.scaled(1000 / INTERVAL).cells(),
            ratio(t.cpu, base),
            *([f"{memory[name] / 1e6:,.0f}", f"{(memory[name] - memory[OFF]) / 1e6:+,.0f}"] if memory else []),
        ]
        for name, t in timings.items()
    ]
    return table(["", "ms a step", "range", "/ LEAP off", *(["MB", "MB added"] if memory else [])], rows)


def _state_bytes(classes: int, options: argparse.Namespace) -> str:
    centres, rings = classes * options.embedding * 4, int(_counts(classes).sum()) * 2
    return f"Centres are {centres / 1e6:,.0f} MB and angle rings {rings / 1e6:,.0f} MB of what is added."


def _memory(side: str, classes: int, options: argparse.Namespace) -> float:
    """Bytes at the peak of an interval, in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--memory-of", side, "--classes", str(classes)]
    for name in ("device", "batch", "embedding", "threads", "precision"):
        command += [f"--{name}", str(getattr(options, name))]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _measure_memory(options: argparse.Namespace, device: torch.device) -> None:
    build(
        options.memory_of, _classifier(20, options, device), options
    )()  # what the first step loads belongs to the program
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = peak_memory(device)
    build(options.memory_of, _classifier(options.classes[0], options, device), options)()
    print(peak_memory(device) - before)


if __name__ == "__main__":
    main()
