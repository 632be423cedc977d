#!/usr/bin/env python
"""A small set in LFW's form, of rendered faces: lfw/NAME/NAME_0001.jpg, and a pairs.txt as the official one.

Nothing measured on it says anything about people; those that ``facetrain data demo`` renders are not among them.

Example: python tools/make_lfw_fixture.py data/LFW
         facetrain eval lfw runs/demo --pairs data/LFW/pairs.txt --images data/LFW/lfw
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from facetrain.data.images import encode_jpeg
from facetrain.data.synthetic import render
from facetrain.evaluation.scores import FOLDS

STRANGERS = 20_000
"""People are rendered from this number on."""


def main() -> None:
    """Write what is asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("out", type=Path, help="a folder that is new or empty")
    options.add_argument("--people", type=int, default=40)
    options.add_argument("--photos", type=int, default=10, help="of each (default 10)")
    options.add_argument("--pairs", type=int, default=30, help="of each kind in a fold (default 30; LFW: 300)")
    options.add_argument("--size", type=int, default=112, help="pixels a side (default 112)")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    if chosen.people < 2 or chosen.photos < 2 or chosen.pairs < 1:
        options.error("at least 2 people, 2 photos of each and 1 pair are needed")
    chosen.out.mkdir(parents=True, exist_ok=True)
    if any(chosen.out.iterdir()):
        options.error(f"{chosen.out} is not empty")
    lines = draw_pairs(chosen.people, chosen.photos, chosen.pairs, np.random.default_rng(chosen.seed))
    (chosen.out / "pairs.txt").write_text(f"{FOLDS}\t{chosen.pairs}\n" + "".join(f"{line}\n" for line in lines))
    for person in range(chosen.people):
        folder = chosen.out / "lfw" / name_of(person)
        folder.mkdir(parents=True)
        for number in range(1, chosen.photos + 1):
            face = render(chosen.seed, STRANGERS + person, number, chosen.size)
            (folder / f"{name_of(person)}_{number:04d}.jpg").write_bytes(encode_jpeg(face))
    print(f"{chosen.out}: {chosen.people * chosen.photos:,} photos of {chosen.people:,} people, {len(lines):,} pairs")


def draw_pairs(people: int, photos: int, pairs: int, rng: np.random.Generator) -> list[str]:
    """The lines of all folds: ``pairs`` of one person, then ``pairs`` of two; photos are numbered from 1."""
    lines = []
    for _ in range(FOLDS):
        for _ in range(pairs):
            first, second = rng.choice(photos, 2, replace=False) + 1
            lines.append(f"{name_of(int(rng.integers(people)))}\t{first}\t{second}")
        for _ in range(pairs):
            one, other = map(name_of, rng.choice(people, 2, replace=False).tolist())
            first, second = rng.integers(photos, size=2) + 1
            lines.append(f"{one}\t{first}\t{other}\t{second}")
    return lines


def name_of(person: int) -> str:
    """A name as LFW's folders have them."""
    return f"Person_{person:03d}"


if __name__ == "__main__":
    main()
