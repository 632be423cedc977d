"""The arithmetic of a GPU against the host's: classifier, samples, precision, synchronisation. Part of gpu_check.py.

Each check returns one line, or raises what is wrong.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facetrain.classifier.clouds import Cloud, normal_table, places
from facetrain.classifier.partial_fc import PartialFC, initial_weights
from facetrain.classifier.sampling import Sampler, sample_classes
from facetrain.config import Config, OptimConfig
from facetrain.config_loss import ClassifierConfig, MarginConfig
from facetrain.data.loader import Batch
from facetrain.distributed import World
from facetrain.train import build_state, train_step

MANY = 10_000_000


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
