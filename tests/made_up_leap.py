"""What a training run with LEAP leaves, made up: lines of metrics.jsonl and maps of people."""

from __future__ import annotations

import json

import numpy as np

EPOCHS, STEPS, START = 12, 40, 280
"""Epochs, steps of each, and the step after which clouds begin."""


def degrees(mean, deviation, count, seed=0):
    """180 counts of ``count`` angles."""
    angles = np.random.default_rng(seed).normal(mean, deviation, count).clip(0, 179.9)
    return np.bincount(angles.astype(int), minlength=180).tolist()


def angle_lines(clouds=True, threshold=True, epochs=EPOCHS):
    """The angles of head and tail shrink over the epochs, the tail's more so with clouds."""
    lines = []
    for epoch in range(1, epochs + 1):
        head = degrees(30 + 50 / epoch, 8, 3000, epoch)
        tail = degrees(25 + 50 / epoch - (clouds and epoch * STEPS > START) * 4, 6, 1600, 99 + epoch)
        counts = {"head": head, "tail": tail} if threshold else {"tail": np.add(head, tail).tolist()}
        lines.append({"kind": "angles", "step": epoch * STEPS, "epoch": float(epoch), **counts})
    return lines


def leap_lines(clouds=True, threshold=True, every=10):
    """No spread at first, then one of head and tail, and clouds from START on."""
    lines = []
    for step in range(every, EPOCHS * STEPS + 1, every):
        known, on = step > 2 * every, clouds and step > START
        lines.append(
            {
                "kind": "leap",
                "step": step,
                "sigma_head": 0.11 + 4 / (step + 40) if known and threshold else None,
                "sigma_tail": 0.09 + 4 / (step + 40) - 0.01 * on if known and threshold else None,
                "sigma_overall": 0.105 + 4 / (step + 40) if known else None,
                "cloud_share": 0.3 + 0.0002 * step if on else 0.0,
                "cloud_sigma": 0.05 + 2 / step if on else None,
            }
        )
    return lines


def write_map(folder, step, spread=0.7, head=8, tail=8, seed=0):
    """``head`` people with 20 images each and ``tail`` with 5, scattered around random directions by ``spread``."""
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for person in range(head + tail):
        centre = np.random.default_rng(person).normal(size=64)
        count = 20 if person < head else 5
        rows.append(centre / np.linalg.norm(centre) + spread * rng.normal(size=(count, 64)) / 8)
        labels += [7 * person] * count
    embeddings = np.concatenate(rows)
    of_person = np.array(labels) // 7
    (folder / "leap").mkdir(parents=True, exist_ok=True)
    path = folder / "leap" / f"map_{step:08d}.npz"
    np.savez(
        path,
        embeddings=(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32),
        labels=np.array(labels, np.int64),
        head=of_person < head,
        images=np.where(of_person < head, 60 - of_person, 5).astype(np.int64),
    )
    return path


def write_leap(folder, clouds=True, threshold=True):
    """All of it into a run's folder, after what its metrics.jsonl has."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "metrics.jsonl"
    whole = log.read_text().rpartition("\n")[0] + "\n" if log.exists() else ""
    lines = [*leap_lines(clouds, threshold), *angle_lines(clouds, threshold)]
    log.write_text(whole.lstrip("\n") + "".join(json.dumps(line) + "\n" for line in lines))
    if clouds:
        write_map(folder, START, 0.9)
    write_map(folder, EPOCHS * STEPS, 0.6, seed=1)
    recipe = {"variant": "vanilla" if clouds else "off", "head_threshold": 20 if threshold else None}
    recipe |= {"center_gamma": 0.9, "angle_against": "previous", "memory_factor": 1}
    recipe |= {"cloud_noise": "per_class", "cloud_for": "tail"}
    (folder / "config.yaml").write_text(json.dumps({"leap": recipe}))
