"""Made-up results and images of one pair set, for the tests of what is written about them."""

from __future__ import annotations

import numpy as np

from facetrain.data.images import encode_jpeg
from facetrain.evaluation.pairs import PairSet, verify

PAIRS = 400


def made_up_result(seed=0):
    rng = np.random.default_rng(seed)
    same = np.arange(PAIRS) // 20 % 2 == 0
    first = rng.normal(size=(PAIRS, 8))
    second = np.where(same[:, None], first + rng.normal(size=first.shape), rng.normal(size=first.shape))
    rows = np.empty((2 * PAIRS, 8))
    rows[0::2], rows[1::2] = first, second
    return verify(rows, same, fprs=(1e-3, 1e-2, 1e-1))


def made_up_pairs(name, result):
    """Both images of pair i are grey with value i % 256, the second one 0 in red."""
    images = []
    for i in range(PAIRS):
        images += [encode_jpeg(np.full((16, 16, 3), (red, i % 256, i // 256), np.uint8)) for red in (255, 0)]
    return PairSet(name, images, result.same)
