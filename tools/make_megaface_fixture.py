#!/usr/bin/env python
"""A small set in MegaFace's form, of rendered faces: probes, distractors, the devkit's lists, noise lists.

Noise is noise in truth: the listed probes show somebody else, the listed distractors a person among the probes, so that
cleaning moves the numbers as it does in the real set. Examples:

python tools/make_megaface_fixture.py megaface/
python tools/make_megaface_fixture.py --features-only --full-size speed/     (2 GB: features/*.npy and their lists)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from facetrain.data.images import encode_jpeg
from facetrain.data.progress import progress
from facetrain.data.synthetic import render
from facetrain.data.workers import default_workers, ordered_map

NOISY_PROBES, NOISY_DISTRACTORS = 2, 4
STRANGERS = 10_000
"""Distractors are people from this number on."""
SOMEBODY_ELSE = 5_000
"""Noisy probes show people from this number on."""
UNSEEN_PHOTO = 1_000
"""Noisy distractors are photos of probe people from this number on."""
SPREAD = 0.8
"""Of --features-only: length of what a feature has besides its person's direction."""
_BLOCK = 10_000


def main() -> None:
    """Write the set."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path, help="the folder to write, new or empty")
    options.add_argument("--people", type=int, default=10, help="among the probes")
    options.add_argument("--probes", type=int, default=60, help="images of them together")
    options.add_argument("--distractors", type=int, default=1000)
    options.add_argument("--size", type=int, default=112, help="pixels a side")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--features-only", action="store_true", help="random features as .npy instead of images")
    options.add_argument("--dim", type=int, default=512, help="numbers a feature, with --features-only")
    options.add_argument("--full-size", action="store_true", help="80 people, 3,530 probes, 1,000,000 distractors")
    chosen = options.parse_args()
    if chosen.full_size:
        chosen.people, chosen.probes, chosen.distractors = 80, 3530, 1_000_000
    if chosen.people < 2 or chosen.probes < 3 * chosen.people or chosen.distractors < NOISY_DISTRACTORS + 1:
        options.error("at least 2 people, 3 probes a person and 5 distractors are needed")
    if chosen.out.exists() and any(chosen.out.iterdir()):
        options.error(f"{chosen.out} is not empty; choose a new folder")
    (chosen.out / "templatelists").mkdir(parents=True)
    people = np.sort(np.arange(chosen.probes) % chosen.people)
    probes = [f"Person_{p:02d}/Person_{p:02d}_{i}.jpg" for i, p in enumerate(people.tolist())]
    distractors = [f"{i % 1000:03d}/{i // 3:08d}@N00/{i}_0.jpg" for i in range(chosen.distractors)]
    noisy = probes[:: len(probes) // NOISY_PROBES][:NOISY_PROBES], distractors[:NOISY_DISTRACTORS]
    write_lists(chosen.out, probes, people.tolist(), distractors, noisy)
    if chosen.features_only:
        write_features(chosen.out / "features", people.tolist(), chosen.distractors, chosen.dim, chosen.seed)
    else:
        write_images(chosen.out, probes, people.tolist(), distractors, noisy, (chosen.seed, chosen.size))
    print(f"{chosen.out}: {len(probes):,} probes of {chosen.people} people, {len(distractors):,} distractors")


def write_lists(
    out: Path,
    probes: Sequence[str],
    people: Sequence[int],
    distractors: Sequence[str],
    noisy: tuple[Sequence[str], Sequence[str]],
) -> None:
    """The devkit's lists, the smaller ones nested in the larger, and both noise lists."""
    lists = out / "templatelists"
    names = [f"Person_{p:02d}" for p in people]
    (lists / "facescrub_features_list.json").write_text(json.dumps({"id": names, "path": list(probes)}))
    sizes = {10**i for i in range(1, 7) if 10**i < len(distractors)} | {len(distractors)}
    for size in sorted(sizes):
        (lists / f"megaface_features_list.json_{size}_1").write_text(json.dumps({"path": list(distractors[:size])}))
    lines = [path.rsplit("/", 1)[-1] for path in noisy[0]]
    (out / "facescrub_noises.txt").write_text("\n".join(["# probes that show somebody else", *lines]) + "\n")
    lines = [f"{number}\t{path}" for number, path in enumerate(noisy[1])]
    (out / "megaface_noises.txt").write_text("\n".join(["# distractors that show a probe person", *lines]) + "\n")


def write_images(
    out: Path,
    probes: Sequence[str],
    people: Sequence[int],
    distractors: Sequence[str],
    noisy: tuple[Sequence[str], Sequence[str]],
    settings: tuple[int, int],
) -> None:
    """Render all images; ``settings`` are seed and size."""
    jobs = []
    for i, (path, person) in enumerate(zip(probes, people, strict=True)):
        jobs.append((out / "facescrub_images" / path, SOMEBODY_ELSE + i if path in noisy[0] else person, i))
    for i, path in enumerate(distractors):
        of_probe = path in noisy[1]
        shown = people[i * 7 % len(people)] if of_probe else STRANGERS + i
        jobs.append((out / "megaface_images" / path, shown, UNSEEN_PHOTO + i if of_probe else 0))
    with progress("rendering", len(jobs)) as advance:
        rendered = ordered_map(_render, [job[1:] for job in jobs], default_workers(len(jobs)), settings)
        for (place, _, _), image in zip(jobs, rendered, strict=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(image)
            advance(1)


def _render(settings: tuple[int, int], job: tuple[int, int]) -> bytes:
    return encode_jpeg(render(settings[0], job[0], job[1], settings[1]))


def write_features(out: Path, people: Sequence[int], distractors: int, dim: int, seed: int) -> None:
    """Random features of length 1, those of one person near each other, a block at a time."""
    out.mkdir()
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(people) + 1, dim), np.float32) / np.sqrt(dim)
    wanted = {"facescrub": len(people), "megaface": distractors}
    with progress("drawing", sum(wanted.values()), "features") as advance:
        for name, count in wanted.items():
            with (out / f"{name}.npy").open("wb") as file:
                npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, dim)})
                for start in range(0, count, _BLOCK):
                    rows = random.standard_normal((min(_BLOCK, count - start), dim), np.float32)
                    if name == "facescrub":
                        rows = SPREAD * rows / np.sqrt(dim) + centres[list(people[start : start + len(rows)])]
                    file.write((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f4").tobytes())
                    advance(len(rows))


if __name__ == "__main__":
    main()
