#!/usr/bin/env python
"""Everything that can only be checked or measured on a GPU, in one command: python tools/gpu_check.py --out gpu.md

Each check prints one line and the script leaves with 1 if any failed. With --device cpu it runs what a CPU can, which
shows that the script itself works.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from benchmark import report as write_report

from facetrain.classifier.clouds import Cloud, normal_table, places
from facetrain.classifier.partial_fc import PartialFC
from facetrain.config import Config, OptimConfig
from facetrain.config_loss import ClassifierConfig, MarginConfig
from facetrain.data.loader import Batch
from facetrain.distributed import World, all_gather, reduce_scatter
from facetrain.train import build_state, train_step

TOOLS = Path(__file__).parent


def main() -> int:
    """Run every check, then the benchmarks."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--quick", action="store_true", help="checks only, no benchmarks")
    options.add_argument("--out", type=Path, help="write the report there too; a bare name goes to docs/benchmarks/")
    chosen = options.parse_args()
    device = torch.device(chosen.device)
    checks: list[tuple[str, Callable[[torch.device], str]]] = [
        ("loss and gradients against float64 on the CPU", classifier_against_float64),
        ("the same with feature clouds", clouds_against_float64),
        ("updates without host-device synchronisation, LEAP on", no_synchronisation),
        ("bf16 and float32 start with the same losses", bf16_beside_float32),
        ("a run that goes on from its checkpoint, bf16", resumed_run),
    ]
    if device.type == "cuda":
        checks.insert(0, ("NCCL collectives on one GPU", nccl_alone))
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
    benches = [] if chosen.quick else ["bench_classifier.py", "bench_leap.py", "bench_train.py"]
    reports = []
    for name in benches:
        text = bench(name, device)
        failed += text is None
        reports.append(f"{name} failed" if text is None else text)
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


def clouds_against_float64(device: torch.device) -> str:
    """The same with a cloud for every third row, some of whose angles are clipped."""
    return classifier_against_float64(device, clouds=True)


def _cloud(where: torch.device, dtype: torch.dtype) -> Cloud:
    rows = np.arange(0, 128, 3)
    std = torch.linspace(0.05, 1.2, len(rows), dtype=torch.float64).to(where, dtype)
    start = torch.from_numpy(places(0, 0, rows)).to(where)
    return Cloud(rows, std, start, normal_table(0, dtype, where, 1000), per_class=True)


def classifier_against_float64(device: torch.device, clouds: bool = False) -> str:
    """Largest relative error of loss and gradients, float32 on the device against float64 on the CPU."""
    worst = 0.0
    labels = np.arange(128) * 7
    for kind in ("cosface", "arcface"):
        for keep in (True, False):
            config = ClassifierConfig(
                margin=MarginConfig.model_validate({"kind": kind, "gradient": "exact"}), chunk=1000, keep_logits=keep
            )
            found = []
            for where, dtype in ((torch.device("cpu"), torch.float64), (device, torch.float32)):
                classifier = PartialFC(5000, 256, config, OptimConfig(), World(device=where), 0, dtype)
                x = F.normalize(torch.randn((128, 256), generator=torch.Generator().manual_seed(1)))
                x = x.to(where, dtype).requires_grad_()
                classifier.begin(labels, 0)
                loss = classifier.loss(x, labels, _cloud(where, dtype) if clouds else None)
                loss.backward()
                assert x.grad is not None
                assert classifier.weight.grad is not None
                found.append([t.detach().double().cpu() for t in (loss, x.grad, classifier.weight.grad)])
            worst = max(worst, *(float((a - b).norm() / a.norm()) for a, b in zip(*found, strict=True)))
    if not worst < 1e-5:
        raise AssertionError(f"relative error {worst:.1e}, 1e-5 allowed")
    return f"relative error at most {worst:.1e}"


def _small(device: torch.device, **train: object) -> Config:
    return Config.model_validate(
        {
            "output": "unused",
            "device": device.type,
            "data": {"path": "unused"},
            "model": {"width": 16, "input_size": 48, "embedding_size": 128},
            "classifier": {"sample_rate": 0.3, "chunk": 512},
            "leap": {"variant": "vanilla", "head_threshold": 5, "start_epoch": 0, "sync_interval": 2},
            "optim": {"clip_norm": 5},
            "train": {"batch_size": 64} | train,
        }
    )


def _losses(device: torch.device, steps: int, **train: object) -> list[torch.Tensor]:
    counts = np.where(np.arange(2000) % 5, 5, 40)
    state = build_state(_small(device, **train), counts, World(device=device))
    drawn = np.random.default_rng(0)
    images = torch.from_numpy(drawn.integers(0, 256, (64, 48, 48, 3), dtype=np.uint8))
    batch = Batch(images.pin_memory() if device.type == "cuda" else images, np.arange(64) * 31)
    losses = [train_step(state, [batch], 0.05) for _ in range(3)]  # what is made once may wait for the device
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        losses += [train_step(state, [batch], 0.05) for _ in range(steps)]
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return losses


def no_synchronisation(device: torch.device) -> str:
    """Updates with sampling and clipping while every synchronisation of host and device is an error."""
    losses = [loss.item() for loss in _losses(device, 5)]
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


def bench(name: str, device: torch.device) -> str | None:
    """A benchmark's own report, its title one level lower; None where it failed."""
    command = [sys.executable, str(TOOLS / name), "--device", device.type]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    sys.stderr.write(done.stderr)
    return None if done.returncode else "#" + done.stdout


if __name__ == "__main__":
    sys.exit(main())
