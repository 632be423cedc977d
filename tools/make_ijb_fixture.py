#!/usr/bin/env python
"""A small, complete IJB data set of rendered faces, in the official files' form; or features of the real sizes.

Nothing measured on it says anything about people. Faces are rendered upright, then turned, scaled and set into a larger
picture by a known similarity transform, so that the five landmarks are known exactly and alignment gives the rendering
back.

Example: python tools/make_ijb_fixture.py /tmp/IJBC && facetrain eval ijbc runs/demo /tmp/IJBC
Example: python tools/make_ijb_fixture.py /tmp/full --features-only --full-size     (1.3 GB)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from facetrain.data.images import encode_jpeg
from facetrain.data.synthetic import render
from facetrain.evaluation.ijb.align import POINTS, SIZE
from facetrain.evaluation.ijb.meta import IJBB, IJBC, Dataset

HEADING = "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID,FACE_X,FACE_Y,FACE_WIDTH,FACE_HEIGHT"
IMAGES, GALLERY_1, GALLERY_2, PROBES, GENUINE, PAIRS = 469_375, 1_772, 1_759, 19_593, 19_557, 15_658_489
"""IJB-C's own numbers; each probe has one gallery template of its subject."""
_PART = 1 << 16


@dataclass(frozen=True)
class Layout:
    """Who is where: (T,) subject and kind (0, 1: the two galleries, 2: probes) of the templates 1..T, and their images.

    ``template`` (N,) is the number of each image's template, from 1, never falling; ``medium`` (N,) that of its medium.
    """

    subject: NDArray[np.int64]
    kind: NDArray[np.int64]
    template: NDArray[np.int64]
    medium: NDArray[np.int64]


def main() -> None:
    """Write what is asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path, help="a folder that is new or empty")
    options.add_argument("--dataset", choices=("ijbb", "ijbc"), default="ijbc", help="whose file names")
    options.add_argument("--subjects", type=int, default=12, help="people, half in each gallery (default 12)")
    options.add_argument("--probes", type=int, default=3, help="probe templates of each (default 3)")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--features-only", action="store_true", help="features.npy instead of pictures")
    options.add_argument("--full-size", action="store_true", help="IJB-C's sizes; needs --features-only")
    options.add_argument("--dimension", type=int, default=512, help="of the features (default 512)")
    chosen = options.parse_args()
    if chosen.full_size and not chosen.features_only:
        options.error("--full-size needs --features-only: half a million pictures would take hours to render")
    if chosen.subjects < 2 or chosen.probes < 1:
        options.error("at least 2 subjects and 1 probe of each are needed")
    chosen.out.mkdir(parents=True, exist_ok=True)
    if any(chosen.out.iterdir()):
        options.error(f"{chosen.out} is not empty")
    dataset = IJBB if chosen.dataset == "ijbb" else IJBC
    rng = np.random.default_rng(chosen.seed)
    layout = full_layout(rng) if chosen.full_size else small_layout(chosen.subjects, chosen.probes)
    write_meta(chosen.out, dataset, layout, rng, PAIRS if chosen.full_size else None)
    if chosen.features_only:
        write_features(chosen.out / "features.npy", layout, chosen.dimension, rng)
        write_landmarks(chosen.out, dataset, np.tile(POINTS, (len(layout.template), 1, 1)), rng)
    else:
        write_landmarks(chosen.out, dataset, write_crops(chosen.out / "loose_crop", layout, chosen.seed, rng), rng)


def small_layout(subjects: int, probes: int) -> Layout:
    """A gallery template of two stills and a clip of two frames for each; probes of a still, a clip, or both."""
    subject, kind, template, medium = [], [], [], []
    media = 1
    for person in range(subjects):
        for number in range(1 + probes):
            subject.append(person)
            kind.append(person % 2 if number == 0 else 2)
            frames = [1, 1, 2] if number == 0 else [[1], [3], [1, 2]][number % 3]
            for count in frames:
                template += [len(subject)] * count
                medium += [media] * count
                media += 1
    return Layout(*(np.array(column, np.int64) for column in (subject, kind, template, medium)))


def full_layout(rng: np.random.Generator) -> Layout:
    """IJB-C's numbers of templates and images; templates as uneven as there."""
    kind = np.repeat([0, 1, 2], [GALLERY_1, GALLERY_2, PROBES])
    people = GALLERY_1 + GALLERY_2
    owners = np.concatenate((np.arange(people), rng.integers(0, people, PROBES - people)))
    subject = np.concatenate((np.arange(people), rng.permutation(owners)))
    share = rng.lognormal(0, 1.2, len(kind))
    more = rng.choice(len(kind), IMAGES - len(kind), p=share / share.sum())
    template = np.sort(np.concatenate((np.arange(len(kind)), more))) + 1
    new = rng.random(len(template)) < 0.4  # frames of a clip follow each other
    new[1:] |= template[1:] != template[:-1]
    return Layout(subject, kind, template, np.cumsum(new) + 1)


def write_meta(out: Path, dataset: Dataset, layout: Layout, rng: np.random.Generator, pairs: int | None) -> None:
    """The image list, the pairs and the 1:N lists."""
    (out / "meta").mkdir()
    lines = zip(image_names(layout), layout.template.tolist(), layout.medium.tolist(), strict=True)
    _write(dataset.file(out, "face_tid_mid.txt"), (f"{name} {tid} {mid}\n" for name, tid, mid in lines))
    for number, rest in enumerate([*(f"1N_gallery_{name}.csv" for name in dataset.galleries), "1N_probe_mixed.csv"]):
        images = np.flatnonzero(layout.kind[layout.template - 1] == number).tolist()
        rows = (
            f"{layout.template[i]},{layout.subject[layout.template[i] - 1] + 1},img/{i + 1}.jpg,{i + 1},0,0,100,100\n"
            for i in images
        )
        _write(dataset.file(out, rest), [HEADING + "\n", *rows])
    enrolled, probes = np.flatnonzero(layout.kind < 2), np.flatnonzero(layout.kind == 2)
    own = np.empty(int(layout.subject.max()) + 1, np.int64)
    own[layout.subject[enrolled]] = enrolled
    genuine = np.stack([own[layout.subject[probes]], probes], axis=1)
    if pairs is None:
        cells = np.stack(np.meshgrid(enrolled, probes, indexing="ij"), axis=-1).reshape(-1, 2)
        impostor = cells[layout.subject[cells[:, 0]] != layout.subject[cells[:, 1]]]
    else:
        genuine = genuine[:GENUINE]
        drawn = rng.choice(len(enrolled) * len(probes), pairs - len(genuine) + len(probes), replace=False)
        cells = np.stack([enrolled[drawn // len(probes)], probes[drawn % len(probes)]], axis=1)
        impostor = cells[layout.subject[cells[:, 0]] != layout.subject[cells[:, 1]]][: pairs - len(genuine)]
    both = np.concatenate((np.insert(genuine + 1, 2, 1, axis=1), np.insert(impostor + 1, 2, 0, axis=1)))
    both = both[np.argsort(both[:, 0], kind="stable")]
    parts = (both[a : a + _PART].tolist() for a in range(0, len(both), _PART))
    _write(dataset.file(out, "template_pair_label.txt"), (f"{a} {b} {c}\n" for part in parts for a, b, c in part))


def write_landmarks(out: Path, dataset: Dataset, landmarks: NDArray, rng: np.random.Generator) -> None:
    """The list of landmarks; most detector scores are near 1, a few much lower."""
    scores = np.where(rng.random(len(landmarks)) < 0.9, 0.999, rng.uniform(0.1, 0.99, len(landmarks)))
    rows = zip(range(1, len(landmarks) + 1), landmarks.reshape(-1, 10).tolist(), scores.tolist(), strict=True)
    _write(
        dataset.file(out, "name_5pts_score.txt"),
        (f"{i}.jpg {' '.join(f'{x:.3f}' for x in points)} {score:.3f}\n" for i, points, score in rows),
    )


def write_crops(folder: Path, layout: Layout, seed: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """JPEGs of rendered faces, turned by up to 25 degrees and scaled by up to a third; their landmarks (N, 5, 2)."""
    folder.mkdir()
    landmarks = np.empty((len(layout.template), 5, 2))
    for i, (name, template) in enumerate(zip(image_names(layout), layout.template.tolist(), strict=True)):
        face = render(seed, int(layout.subject[template - 1]), i, SIZE)
        side = int(rng.integers(180, 220))
        angle, scale = rng.uniform(-0.44, 0.44), rng.uniform(0.9, 1.3)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = np.column_stack([turn, side / 2 - turn @ [SIZE / 2, SIZE / 2]])
        crop = cv2.warpAffine(face, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
        (folder / name).write_bytes(encode_jpeg(np.asarray(crop, np.uint8)))
        landmarks[i] = POINTS @ matrix[:, :2].T + matrix[:, 2]
    return landmarks


def write_features(path: Path, layout: Layout, dimension: int, rng: np.random.Generator) -> None:
    """(N, D) float32: a direction for each subject and noise, of uneven length."""
    people = rng.standard_normal((int(layout.subject.max()) + 1, dimension), dtype=np.float32)
    shape = (len(layout.template), dimension)
    with path.open("wb") as file:
        npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for start in range(0, len(layout.template), _PART):
            owner = layout.subject[layout.template[start : start + _PART] - 1]
            rows = people[owner] + np.float32(2.5) * rng.standard_normal((len(owner), dimension), dtype=np.float32)
            file.write((rows * rng.uniform(0.5, 1.5, (len(owner), 1)).astype(np.float32)).tobytes())


def image_names(layout: Layout) -> list[str]:
    """Names as the official lists have them."""
    return [f"{i}.jpg" for i in range(1, len(layout.template) + 1)]


def _write(path: Path, lines: Iterator[str] | list[str]) -> None:
    with path.open("w") as file:
        file.writelines(lines)


if __name__ == "__main__":
    main()
