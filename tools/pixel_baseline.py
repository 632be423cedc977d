"""How well the cosine of raw pixels verifies a pair set: what a trained model must clearly beat.

Example: python tools/pixel_baseline.py data/mine/heldout.bin --size 32
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from facetrain.console import console
from facetrain.data.images import decode
from facetrain.evaluation.lfw import verification_table
from facetrain.evaluation.pairs import read_bin, verify


def main(
    bins: Annotated[list[Path], typer.Argument(metavar="BIN", help="insightface .bin files")],
    size: Annotated[int, typer.Option(help="pixels a side to which the images are scaled")] = 112,
) -> None:
    """Score pair sets by the cosine of grey, mean-free pixels, under the protocol of `facetrain eval lfw`."""
    results = []
    for path in bins:
        pairs = read_bin(path)
        images = np.stack([decode(pairs.encoded(i), size).mean(axis=2).ravel() for i in range(len(pairs))])
        pixels = (images - images.mean(axis=1, keepdims=True)).astype(np.float32)
        results.append((pairs.name, verify(pixels, pairs.same, flip=False)))
    console().print(verification_table(results))


if __name__ == "__main__":
    typer.run(main)
