#!/usr/bin/env python
"""Everything that can only be checked or measured on a GPU, in one command: python tools/gpu_check.py --out gpu.md

Each check prints one line and the script leaves with 1 if any failed. With --device cpu it runs what a CPU can, which
shows that the script itself works.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from benchmark import report as write_report
from torch import Tensor

from facetrain.classifier.clouds import Cloud, normal_table, places
from facetrain.classifier.partial_fc import PartialFC, initial_weights
from facetrain.classifier.sampling import Sampler, sample_classes
from facetrain.config import Config, OptimConfig
from facetrain.config_loss import ClassifierConfig, MarginConfig
from facetrain.data.loader import Batch
from facetrain.distributed import World, all_gather, reduce_scatter
from facetrain.train import build_state, train_step

TOOLS = Path(__file__).parent
MANY = 10_000_000
CLASSIFIER = "bench_classifier.py --batch 512 --no-memory"
TRAIN = "bench_train.py --only full --rounds 3"
BENCHMARKS = [
    f"{CLASSIFIER} --precision bf16 --classes 10000 100000 1000000",
    f"{CLASSIFIER} --tf32 --classes 100000 1000000",
    "bench_classifier.py --batch 512 --precision bf16 --classes 1000000 --rounds 1 --sides dense 'facetrain, streamed' "
    "'facetrain, exponentials kept' 'facetrain, 10 % sampled' 'partial FC, 10 % sampled'",
    "bench_leap.py --precision bf16 --classes 100000 1000000 --no-memory",
    TRAIN,
    f"{TRAIN} --model iresnet50 --batch 256 --classes 1000000 --rate 0.1 --sides "
    '"backbone alone, forward and backward" "facetrain\'s train_step" "facetrain\'s train_step, LEAP"',
]


def main() -> int:
    """Run every check, then the benchmarks."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--quick", action="store_true", help="checks only, no benchmarks")
    options.add_argument("--out", type=Path, help="write the report there too; a bare name goes to docs/benchmarks/")
    chosen = options.parse_args()
    device = torch.device(chosen.device, 0) if chosen.device == "cuda" else torch.device(chosen.device)
    checks: list[tuple[str, Callable[[torch.device], str]]] = [
        ("loss, gradients and an update against float64 on the CPU", classifier_against_float64),
        ("the same with feature clouds", partial(classifier_against_float64, clouds=True)),
        ("the same in bfloat16", partial(classifier_against_float64, precision="bf16")),
        (
            "the same in bfloat16 with feature clouds",
            partial(classifier_against_float64, clouds=True, precision="bf16"),
        ),
        ("sampled classes against the host's", same_sample),
        ("updates without host-device synchronisation, LEAP on", no_synchronisation),
        ("bf16 and float32 start with the same losses", bf16_beside_float32),
        ("a run that goes on from its checkpoint, bf16", resumed_run),
    ]
    if device.type == "cuda":
        checks.insert(0, ("NCCL collectives on one GPU", nccl_alone))
        checks.append((f"{MANY:,} identities, full softmax, bf16", ten_million))
    lines, failed = [], 0
    for name, check in checks:
        started = time.monotonic()
        try:
            outcome = check(device)
        except Exception as error:  # the others still tell something
            failed += 1
            outcome = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        lines.append(f"- {name}: {outcome} ({time.monotonic() - started:.1f} s)")
        print(lines[-1], flush=True)
    reports = []
    for command in [] if chosen.quick else BENCHMARKS:
        text = bench(command, device)
        failed += text is None
        reports.append(f"{command} failed" if text is None else text)
    write_report("GPU checks", "\n\n".join(["\n".join(lines), *reports]), chosen.out, device)
    return 1 if failed else 0


def nccl_alone(device: torch.device) -> str:
    """The collectives that training uses, in their dtypes, through NCCL with one rank."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    dist.init_process_group("nccl", rank=0, world_size=1, timeout=timedelta(seconds=60), device_id=device)
    try:
        for dtype in (torch.float32, torch.float64, torch.int64):
            rows = torch.arange(6, device=device, dtype=dtype).reshape(3, 2)
            for collective in (all_gather, reduce_scatter):
                out = torch.zeros_like(rows)
                collective(out, rows)
                assert torch.equal(out, rows)
            dist.all_reduce(rows)
        dist.barrier(device_ids=[device.index or 0])
    finally:
        dist.destroy_process_group()
    return f"right, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"


def _cloud(where: torch.device, dtype: torch.dtype) -> Cloud:
    rows = np.arange(0, 128, 3)
    std = torch.linspace(0.05, 1.2, len(rows), dtype=torch.float64).to(where, dtype)
    start = torch.from_numpy(places(0, 0, rows)).to(where)
    return Cloud(rows, std, start, normal_table(0, dtype, where, 1000), per_class=True)


def classifier_against_float64(device: torch.device, clouds: bool = False, precision: str = "fp32") -> str:
    """Largest relative error of loss, gradients, weights and momentum against float64 on the CPU."""
    worst = 0.0
    allowed = 1e-5 if precision == "fp32" else 1e-2
    for kind in ("cosface", "arcface"):
        for keep_gb, rate in ((0, 1.0), (4, 1.0), (4, 0.3)):
            config = ClassifierConfig(
                margin=MarginConfig.model_validate({"kind": kind, "gradient": "exact"}),
                chunk=1000,
                keep_gb=keep_gb,
                sample_rate=rate,
            )
            exact = _classifier_step(torch.device("cpu"), torch.float64, config, clouds)
            found = _classifier_step(device, torch.float32, config.model_copy(update={"precision": precision}), clouds)
            worst = max(worst, *(float((a - b).norm() / a.norm()) for a, b in zip(exact, found, strict=True)))
    if not worst < allowed:
        raise AssertionError(f"relative error {worst:.1e}, {allowed:.0e} allowed")
    return f"relative error at most {worst:.1e}"


def _classifier_step(where: torch.device, dtype: torch.dtype, config: ClassifierConfig, clouds: bool) -> list[Tensor]:
    """Loss, gradients gathered, then weights and momentum after an update in the backward pass."""
    labels = np.arange(128) * 7
    cloud = _cloud(where, dtype) if clouds else None
    found: list[Tensor] = []
    for lr in (None, 0.1):
        classifier = PartialFC(5000, 256, config, OptimConfig(), World(device=where), 0, dtype)
        x = F.normalize(torch.randn((128, 256), generator=torch.Generator().manual_seed(1)))
        x = x.to(where, dtype).requires_grad_()
        classifier.begin(labels, 0, lr)
        loss = classifier.loss(x, labels, cloud)
        loss.backward()
        assert x.grad is not None
        found += [loss, x.grad]
        if lr is None:
            assert classifier.rows.grad is not None
            found.append(classifier.rows.grad)
        else:
            moved = classifier.weight.detach() - initial_weights(classifier.classes, 256, 0, dtype, where)
            found += [moved, classifier.optimizer.state["momentum"]]
    return [tensor.detach().double().cpu() for tensor in found]


def same_sample(device: torch.device) -> str:
    """The classes that a device draws are those of the host, over steps in order and out of it."""
    classes = range(3_000_000, 4_000_000)
    sampler = Sampler(classes, 0.1, 5, device, torch.float32)
    labels = np.arange(3_500_000, 3_500_512)
    for step in (0, 1, 2, 7, 8):
        sample, expected = sampler.sample(labels, step), sample_classes(classes, labels, 0.1, 5, step)
        targets = sample.targets(labels - classes.start).of_row.cpu().numpy()
        if not np.array_equal(sample.rows.cpu().numpy(), expected):
            raise AssertionError(f"step {step} differs")
        if not np.array_equal(expected[targets] + classes.start, labels):
            raise AssertionError(f"step {step}: images do not find their classes")
    return f"equal, {len(expected):,} of {len(classes):,}"


def ten_million(device: torch.device) -> str:
    """Three updates without a tensor for all gradients or logits; the loss must be what weights without a clue give."""
    labels = np.random.default_rng(0).integers(0, MANY, 512)
    x = torch.randn((512, 512), generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    config = ClassifierConfig(precision="bf16", keep_gb=0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    classifier = PartialFC(MANY, 512, config, OptimConfig(), World(device=device), seed=0)
    times, losses = [], []
    for step in range(4):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        classifier.begin(labels, step, 0.1)
        loss = classifier.loss(x, labels)
        loss.backward()
        end.record()
        losses.append(loss.item())
        times.append(start.elapsed_time(end))
    peak = torch.cuda.max_memory_allocated()
    del classifier, loss
    torch.cuda.empty_cache()  # the benchmarks are processes of their own and need the room
    state = 2 * MANY * 512 * 4
    if not (math.isfinite(losses[-1]) and losses[-1] < losses[0] and peak < 1.1 * state):
        raise AssertionError(f"losses {losses}, {peak / 1e9:.1f} GB for {state / 1e9:.1f} GB of weights and momentum")
    return (
        f"batch 512: {min(times[1:]):.1f} ms a step with its update, peak {peak / 1e9:.1f} GB, of which weights and "
        f"momentum {state / 1e9:.1f} GB; loss {losses[0]:.2f} to {losses[-1]:.2f}"
    )


def _small(device: torch.device, scope: str, **train: object) -> Config:
    return Config.model_validate(
        {
            "output": "unused",
            "device": device.type,
            "data": {"path": "unused"},
            "model": {"width": 16, "input_size": 48, "embedding_size": 128},
            "classifier": {"sample_rate": 0.3, "chunk": 512, "precision": train.get("precision", "fp32")},
            "leap": {"variant": "vanilla", "head_threshold": 5, "start_epoch": 0, "sync_interval": 2},
            "optim": {"clip_norm": 5, "clip_scope": scope},
            "train": {"batch_size": 64} | train,
        }
    )


def _losses(device: torch.device, steps: int, scope: str = "backbone", **train: object) -> list[Tensor]:
    counts = np.where(np.arange(2000) % 5, 5, 40)
    state = build_state(_small(device, scope, **train), counts, World(device=device))
    drawn = np.random.default_rng(0)
    images = torch.from_numpy(drawn.integers(0, 256, (64, 48, 48, 3), dtype=np.uint8))
    batch = Batch(images.pin_memory() if device.type == "cuda" else images, np.arange(64) * 31)
    losses = [train_step(state, [batch], 0.05).loss for _ in range(3)]  # what is made once may wait for the device
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        losses += [train_step(state, [batch], 0.05).loss for _ in range(steps)]
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return losses


def no_synchronisation(device: torch.device) -> str:
    """Updates with sampling and clipping while every synchronisation of host and device is an error."""
    for scope, precision in (("all", "fp32"), ("backbone", "bf16")):  # the classifier's update after and in backward
        losses = [loss.item() for loss in _losses(device, 5, scope, precision=precision)]
        if not losses[-1] < losses[0]:
            raise AssertionError(f"the loss does not fall: {losses}")
    return f"none in 5 updates, loss {losses[0]:.2f} to {losses[-1]:.2f}" if device.type == "cuda" else "ran (CPU)"


def bf16_beside_float32(device: torch.device) -> str:
    """The first losses of both precisions from the same weights."""
    single, half = ([loss.item() for loss in _losses(device, 2, precision=name)] for name in ("fp32", "bf16"))
    gap = abs(half[0] - single[0]) / single[0]
    if not gap < 0.02:
        raise AssertionError(f"{half[0]} against {single[0]}")
    return f"relative difference {gap:.1e}"


def resumed_run(device: torch.device) -> str:
    """`facetrain train` on a small demo set for two epochs, then for one more from its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "facetrain"]
        sizes = "--people 40 --head 10 --size 48 --held-out 20 --held-out-images 6 --pairs 400"
        _run([*command, "data", "demo", f"{folder}/data", *sizes.split()])
        train = [*command, "train", str(TOOLS.parent / "configs" / "demo.yaml"), f"output={folder}/run"]
        train += [f"data.path={folder}/data/train.rec", f"evaluate.sets=[{folder}/data/heldout.bin]"]
        train += [
            f"device={device.type}",
            "model.input_size=48",
            "train.batch_size=32",
            "train.precision=bf16",
            "--nproc",
            "1",
        ]
        for epochs in (2, 3):
            said = _run([*train, f"train.epochs={epochs}"])
    if "going on from" not in said:
        raise AssertionError("the second command did not resume")
    return "trained, verified, resumed"


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    if done.returncode:
        raise AssertionError(done.stderr[-300:])
    return done.stderr


def bench(command: str, device: torch.device) -> str | None:
    """A benchmark's own report, its title one level lower; None where it failed."""
    script, *options = shlex.split(command)
    call = [sys.executable, str(TOOLS / script), *options, "--device", device.type]
    done = subprocess.run(call, capture_output=True, text=True, timeout=400, check=False)
    sys.stderr.write(done.stderr)
    return None if done.returncode else "#" + done.stdout.replace("\n## ", "\n### ")


if __name__ == "__main__":
    sys.exit(main())
