#!/usr/bin/env python
"""Whole training steps on random images, beside the backbone alone, a textbook loop and the arithmetic's limit.

See docs/benchmarks/README.md for what the sides are.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmark import in_turns, parser, ratio, report, rounded, table
from torch.utils.flop_counter import FlopCounterMode

from facetrain.config import Config, DataConfig, ModelConfig, TrainConfig
from facetrain.config_loss import ClassifierConfig, LeapConfig
from facetrain.data.loader import Batch
from facetrain.distributed import World, choose_device
from facetrain.models import build_backbone, normalise
from facetrain.train import build_state, train_step

BACKBONE = "backbone alone, forward and backward"
MODES = {"compiled": "default", "compiled, graph": "reduce-overhead"}
"""What torch.compile calls them."""
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
        made = {name: build(case, options, device) for name, build in SIDES.items() if name in options.sides}
        timings = in_turns(made, options.rounds, device, warmup=3 if device.type == "cuda" else 1)
        floor, count = timings[options.sides[0]].cpu, case.batch * case.steps
        rows = [
            [name, *t.cpu.inverse(count).cells(), ratio(t.cpu, floor), t.wall.inverse(count).cells()[0]]
            for name, t in timings.items()
        ]
        limit = roofline(case, options, device)
        header = ["", "images/s", "range", "time / first line's", "images/s (wall)"]
        sections.append(f"## {case.title}\n\n{table(header, rows)}\n\n{limit}")
        del made
        gc.collect()
    text = (
        f"One process, {options.precision}, {options.rounds} rounds. Images/s are by "
        f"{'CUDA events' if device.type == 'cuda' else 'CPU seconds of one thread'}; images are random, on the "
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
    options.add_argument("--rate", type=float, default=1.0, help="classifier.sample_rate")
    options.add_argument("--sides", nargs="+", choices=SIDES, help="the first is what the others are compared with")
    given = options.parse_args()
    gpu = given.device == "cuda"
    given.precision = given.precision or ("bf16" if gpu else "fp32")
    given.batch = given.batch or (128 if gpu else 32)
    given.sides = given.sides or [name for name in SIDES if name in CPU_SIDES or (gpu and "graph" in name)]
    return given


def cases(options: argparse.Namespace) -> list[Case]:
    """The narrow network of a CPU's recipe and the field's at its size."""
    narrow = ModelConfig(name="iresnet18", width=16, input_size=48, embedding_size=128, activation="relu")
    full = ModelConfig.model_validate({"name": options.model})
    gpu = options.device == "cuda"
    wanted = {
        "narrow": Case("IResNet-18, width 16, 48 px, batch 128, 1,000 classes", narrow, 128, 1000, 10 if gpu else 3),
        "full": Case(
            f"{options.model.replace('iresnet', 'IResNet-')}, 112 px, batch {options.batch}, "
            f"{options.classes:,} classes, sampling {options.rate:g}",
            full,
            options.batch,
            options.classes,
            10 if gpu else 1,
        ),
    }
    return [case for name, case in wanted.items() if options.only in (None, name)]


def roofline(case: Case, options: argparse.Namespace, device: torch.device) -> str:
    """The network's arithmetic at the rate of a large matrix product."""
    backbone = build_backbone(case.model).train()
    counter = FlopCounterMode(display=False)
    with counter:
        backbone(torch.zeros((2, 3, case.model.input_size, case.model.input_size))).sum().backward()
    flops = counter.get_total_flops() / 2
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    a, b = (torch.randn((size, size), device=device).to(dtype) for _ in range(2))
    taken = in_turns({"": lambda: torch.mm(a, b)}, 5, device, warmup=2)[""].cpu.median
    rate = 2 * size**3 / taken
    return (
        f"The network's products are {flops / 1e9:.3g} GFLOP an image; a {size} x {size} matrix product in "
        f"{options.precision} runs at {rate / 1e12:.3g} TFLOP/s, which would be {rounded(rate / flops)} images/s."
    )


def _batch(case: Case, device: torch.device) -> Batch:
    drawn = np.random.default_rng(0)
    size = case.model.input_size
    images = torch.from_numpy(drawn.integers(0, 256, (case.batch, size, size, 3), dtype=np.uint8))
    labels = drawn.integers(0, case.classes, case.batch)
    return Batch(images.pin_memory() if device.type == "cuda" else images, labels)


def _autocast(options: argparse.Namespace, device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16")


def whole_step(leap: bool = False, how: str = "eager") -> Callable[..., Callable[[], object]]:
    """Copy, backbone, classifier, both backward passes, both optimisers: what training does for each batch.

    With LEAP one image in six gets a cloud, and centres and angles follow every five steps.
    """

    def build(case: Case, options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
        counts = np.where(np.arange(case.classes) % 6, 100, 5)
        clouds = LeapConfig(variant="vanilla", head_threshold=5, start_epoch=0.0) if leap else LeapConfig()
        config = Config(
            output=Path("unused"),
            data=DataConfig(path=Path("unused")),
            model=case.model.model_copy(update={"compile": how in MODES, "cuda_graph": how == "compiled, graph"}),
            leap=clouds,
            classifier=ClassifierConfig(
                sample_rate=options.rate, precision="bf16" if device.type == "cuda" else "fp32"
            ),
            train=TrainConfig(batch_size=case.batch, precision=options.precision),
        )
        state = build_state(config, counts, World(device=device))
        state.parallel.train()
        batch = _batch(case, device)
        if leap:
            state.leap.variance.copy_(torch.from_numpy(np.where(counts > 5, 0.06, 0.03)))
            state.leap.follow()

        def steps() -> None:
            for _ in range(case.steps):
                train_step(state, [batch], LR)

        return steps

    return build


def backbone_alone(how: str = "eager") -> Callable[..., Callable[[], object]]:
    """The network's own arithmetic, on a normalised batch on the device: eager, compiled, as a CUDA graph or both."""

    def build(case: Case, options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
        backbone = build_backbone(case.model).to(device).train()
        images = normalise(_batch(case, device).images.to(device))
        run: Callable[..., Any] = torch.compile(backbone, mode=MODES[how]) if how in MODES else backbone
        if how == "graph":
            with torch.autocast("cuda", torch.bfloat16, enabled=options.precision == "bf16", cache_enabled=False):
                run = torch.cuda.make_graphed_callables(backbone, (images.clone(),))
        # Not the gradient of a sum: batch norm makes that zero, and a CPU is slow with almost zero numbers.
        grad = torch.randn((case.batch, case.model.embedding_size), generator=torch.Generator().manual_seed(0))
        grad = grad.to(device)

        def steps() -> None:
            for _ in range(case.steps):
                backbone.zero_grad(set_to_none=True)
                with _autocast(options, device):
                    embeddings = run(images)
                embeddings.backward(grad.to(embeddings.dtype))

        return steps

    return build


def textbook(case: Case, options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    """The same network with a dense cosine classifier, one-hot margin and one torch.optim.SGD over everything."""
    backbone = build_backbone(case.model).to(device).train()
    weights = torch.nn.Parameter(torch.randn((case.classes, case.model.embedding_size)).mul_(0.01).to(device))
    optimizer = torch.optim.SGD([*backbone.parameters(), weights], LR, 0.9, weight_decay=5e-4)
    batch = _batch(case, device)
    target = torch.from_numpy(batch.labels).to(device)

    def steps() -> None:
        for _ in range(case.steps):
            optimizer.zero_grad(set_to_none=True)
            with _autocast(options, device):
                embeddings = backbone(normalise(batch.images.to(device, non_blocking=True)))
            cosines = F.linear(F.normalize(embeddings.float()), F.normalize(weights))
            margins = torch.zeros_like(cosines).scatter_(1, target[:, None], 0.35)
            F.cross_entropy(64 * (cosines - margins), target).backward()
            optimizer.step()

    return steps


SIDES: dict[str, Callable[..., Callable[[], object]]] = {
    BACKBONE: backbone_alone(),
    "backbone alone, CUDA graph": backbone_alone("graph"),
    "backbone alone, torch.compile": backbone_alone("compiled"),
    "backbone alone, torch.compile and CUDA graph": backbone_alone("compiled, graph"),
    "facetrain's train_step": whole_step(),
    "facetrain's train_step, LEAP": whole_step(leap=True),
    "facetrain's train_step, torch.compile and CUDA graph": whole_step(how="compiled, graph"),
    "facetrain's train_step, LEAP, torch.compile and CUDA graph": whole_step(leap=True, how="compiled, graph"),
    "textbook loop": textbook,
}
CPU_SIDES = (BACKBONE, "facetrain's train_step", "facetrain's train_step, LEAP", "textbook loop")


if __name__ == "__main__":
    main()
