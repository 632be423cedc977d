#!/usr/bin/env python
"""Everything that can only be checked or measured on a GPU, in one command: python tools/gpu_check.py --out gpu.md

Each check prints one line and the script leaves with 1 if any failed. With --device cpu it runs what a CPU can, which
shows that the script itself works.
"""

from __future__ import annotations

import argparse
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

import torch
import torch.distributed as dist
from bench_loader import write_images
from benchmark import report as write_report
from gpu_arithmetic import (
    MANY,
    bf16_beside_float32,
    classifier_against_float64,
    no_synchronisation,
    same_sample,
    ten_million,
)

from facetrain import recipe
from facetrain.config import Config
from facetrain.distributed import all_gather, reduce_scatter

TOOLS = Path(__file__).parent
CLASSIFIER = "bench_classifier.py --batch 512 --no-memory"
TRAIN = "bench_train.py --only full --rounds 3"
BENCHMARKS = [
    f"{CLASSIFIER} --precision bf16 --classes 10000 100000 1000000",
    f"{CLASSIFIER} --tf32 --classes 1000000",
    "bench_classifier.py --batch 512 --precision bf16 --classes 1000000 --rounds 1 --sides dense 'facetrain, streamed' "
    "'facetrain, exponentials kept' 'facetrain, 10 % sampled' 'partial FC, 10 % sampled'",
    "bench_leap.py --precision bf16 --classes 100000 1000000 --no-memory",
    "bench_loader.py --workers 0 8 --rounds 2",
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
    if not chosen.quick:
        reports.append(profiled_run(device))
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


def profiled_run(device: torch.device) -> str:
    """A section: where an update's time goes when `facetrain train` reads JPEGs from a .rec."""
    gpu = device.type == "cuda"
    workers = min(8, os.cpu_count() or 1)
    precision = "bf16" if gpu else "fp32"
    with tempfile.TemporaryDirectory() as folder:
        images = argparse.Namespace(images=20_000, distinct=1000, size=112, quality=95)
        settings = {
            "output": f"{folder}/run",
            "device": device.type,
            "data": {"path": str(write_images(Path(folder), images)), "workers": workers},
            "model": {"compile": gpu, "cuda_graph": gpu},
            "classifier": {"precision": precision},
            "train": {"epochs": 1, "batch_size": 128, "precision": precision},
            "profile": True,
        }
        path = Path(folder) / "recipe.yaml"
        path.write_text(recipe.dump(Config.model_validate(settings)))
        _run([sys.executable, "-m", "facetrain", "train", str(path), "--nproc", "1"])
        found = next(Path(folder, "run").rglob("profile.txt")).read_text()
    return (
        f"## Training from a .rec\n\n`facetrain train` with `profile=true`: IResNet-18 at 112 pixels, {precision}, "
        f"{'compiled, CUDA graph, ' if gpu else ''}128 images an\nupdate, 2,000 classes, JPEGs decoded by {workers} "
        f"processes.\n\n```\n{found}```\n"
    )


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    if done.returncode:
        raise AssertionError(done.stderr[-300:])
    return done.stderr


def bench(command: str, device: torch.device) -> str | None:
    """A benchmark's own report, its title one level lower; None where it failed."""
    script, *options = shlex.split(command)
    on = [] if script == "bench_loader.py" else ["--device", device.type]
    call = [sys.executable, str(TOOLS / script), *options, *on]
    done = subprocess.run(call, capture_output=True, text=True, timeout=400, check=False)
    sys.stderr.write(done.stderr)
    return None if done.returncode else "#" + done.stdout.replace("\n## ", "\n### ")


if __name__ == "__main__":
    sys.exit(main())
