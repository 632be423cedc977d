#!/usr/bin/env python
"""Whole training steps on random images, beside the backbone alone and beside a textbook loop.

See docs/benchmarks/README.md for what the sides are.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from benchmark import in_turns, parser, ratio, report, table

from facetrain.config import Config, DataConfig, ModelConfig, TrainConfig
from facetrain.config_loss import ClassifierConfig
from facetrain.data.loader import Batch
from facetrain.distributed import World, choose_device
from facetrain.models import build_backbone, normalise
from facetrain.train import build_state, train_step

BACKBONE = "backbone alone, forward and backward"
LR = 0.01


@dataclass(frozen=True)
class Case:
    """One network at one size."""

    title: str
    model: ModelConfig
    batch: int
    classes: int
    steps: int  # in each measurement


def main() -> None:
    """Measure and report."""
    options = _options()
    torch.set_num_threads(options.threads)
    device = choose_device(options.device, 0)
    sections = []
    for case in cases(options):
        sides = {BACKBONE: backbone_alone, "facetrain's train_step": whole_step, "textbook loop": textbook}
        made = {name: build(case, options, device) for name, build in sides.items()}
        timings = in_turns(made, options.rounds, device, warmup=3 if device.type == "cuda" else 1)
        floor, count = timings[BACKBONE].cpu, case.batch * case.steps
        rows = [
            [name, *t.cpu.inverse(count).cells(), ratio(t.cpu, floor), t.wall.inverse(count).cells()[0]]
            for name, t in timings.items()
        ]
        header = ["", "images/s", "range", "time / backbone's", "images/s (wall)"]
        sections.append(f"## {case.title}\n\n{table(header, rows)}")
        del made
        gc.collect()
    text = (
        f"One process, {options.precision}, {'compiled, ' if options.compile else ''}{options.rounds} rounds. Images/s "
        f"are by {'CUDA events' if device.type == 'cuda' else 'CPU seconds of one thread'}; images are random, on the "
        "host, so neither decoding nor loading is in it.\n\n"
    )
    report("Training step", text + "\n\n".join(sections), options.out, device)


def _options() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=5)
    options.add_argument("--only", choices=("narrow", "full"), help="one of the two networks")
    options.add_argument("--model", default="iresnet18", help="of the full network (default iresnet18)")
    options.add_argument("--batch", type=int, help="of the full network; default 32, on a GPU 128")
    options.add_argument("--precision", choices=("fp32", "bf16"), help="default fp32, on a GPU bf16")
    options.add_argument("--classes", type=int, default=10_000, help="of the full network")
    options.add_argument("--compile", action="store_true", help="torch.compile, as model.compile=true does")
    given = options.parse_args()
    gpu = given.device == "cuda"
    given.precision = given.precision or ("bf16" if gpu else "fp32")
    given.batch = given.batch or (128 if gpu else 32)
    return given


def cases(options: argparse.Namespace) -> list[Case]:
    """The narrow network of a CPU's recipe and the field's at its size."""
    narrow = ModelConfig(
        name="iresnet18", width=16, input_size=48, embedding_size=128, activation="relu", compile=options.compile
    )
    full = ModelConfig.model_validate({"name": options.model, "compile": options.compile})
    gpu = options.device == "cuda"
    wanted = {
        "narrow": Case("IResNet-18, width 16, 48 px, batch 128, 1,000 classes", narrow, 128, 1000, 10 if gpu else 3),
        "full": Case(
            f"{options.model.replace('iresnet', 'IResNet-')}, 112 px, batch {options.batch}, "
            f"{options.classes:,} classes",
            full,
            options.batch,
            options.classes,
            10 if gpu else 1,
        ),
    }
    return [case for name, case in wanted.items() if options.only in (None, name)]


def _batch(case: Case, device: torch.device) -> Batch:
    drawn = np.random.default_rng(0)
    size = case.model.input_size
    images = torch.from_numpy(drawn.integers(0, 256, (case.batch, size, size, 3), dtype=np.uint8))
    labels = drawn.integers(0, case.classes, case.batch)
    return Batch(images.pin_memory() if device.type == "cuda" else images, labels)


def _autocast(options: argparse.Namespace, device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16")


def whole_step(case: Case, options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    """Copy, backbone, classifier, both backward passes, both optimisers: what training does for each batch."""
    config = Config(
        output=Path("unused"),
        data=DataConfig(path=Path("unused")),
        model=case.model,
        classifier=ClassifierConfig(),
        train=TrainConfig(batch_size=case.batch, precision=options.precision),
    )
    state = build_state(config, np.full(case.classes, 10), World(device=device))
    state.parallel.train()
    batch = _batch(case, device)

    def steps() -> None:
        for _ in range(case.steps):
            train_step(state, [batch], LR)

    return steps


def backbone_alone(case: Case, options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    """The network's own arithmetic, on a normalised batch that is on the device."""
    backbone = build_backbone(case.model).to(device).train()
    run = torch.compile(backbone) if options.compile else backbone
    images = normalise(_batch(case, device).images.to(device))
    # Not the gradient of a sum: batch norm makes that zero, and a CPU is slow with almost zero numbers.
    grad = torch.randn((case.batch, case.model.embedding_size), generator=torch.Generator().manual_seed(0)).to(device)

    def steps() -> None:
        for _ in range(case.steps):
            backbone.zero_grad(set_to_none=True)
            with _autocast(options, device):
                embeddings = run(images)
            embeddings.backward(grad.to(embeddings.dtype))

    return steps


def textbook(case: Case, options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    """The same network with a dense cosine classifier, one-hot margin and one torch.optim.SGD over everything."""
    backbone = build_backbone(case.model).to(device).train()
    run = torch.compile(backbone) if options.compile else backbone
    weights = torch.nn.Parameter(torch.randn((case.classes, case.model.embedding_size)).mul_(0.01).to(device))
    optimizer = torch.optim.SGD([*backbone.parameters(), weights], LR, 0.9, weight_decay=5e-4)
    batch = _batch(case, device)
    target = torch.from_numpy(batch.labels).to(device)

    def steps() -> None:
        for _ in range(case.steps):
            optimizer.zero_grad(set_to_none=True)
            with _autocast(options, device):
                embeddings = run(normalise(batch.images.to(device, non_blocking=True)))
            cosines = F.linear(F.normalize(embeddings.float()), F.normalize(weights))
            margins = torch.zeros_like(cosines).scatter_(1, target[:, None], 0.35)
            F.cross_entropy(64 * (cosines - margins), target).backward()
            optimizer.step()

    return steps


if __name__ == "__main__":
    main()
