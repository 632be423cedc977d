"""Random numbers that depend on a key alone: never on rank, worker, order of calls or time.

``uniform(seed, epoch, image)`` is the same number wherever and whenever it is asked for, so data order, augmentation
and sampled negatives are equal on any number of ranks and workers, and after a resume. The generator is counter-based
(the idea of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011); the mixing function is the
finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)


def _finalise(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * MIX_1
    z = (z ^ (z >> np.uint64(27))) * MIX_2
    return z ^ (z >> np.uint64(31))


def bits(*key: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for every key.

    Args:
        key: integers or integer arrays, at least one, which broadcast; negative ones are taken modulo 2**64.

    Returns:
        uint64 array of the broadcast shape.
    """
    with np.errstate(over="ignore"):
        return np.asarray(_finalise(absorbed(*key) + GOLDEN))


def absorbed(*key: ArrayLike) -> NDArray[np.uint64]:
    """The generator's state after a key or its first parts; :func:`bits` is its finaliser's value of this."""
    with np.errstate(over="ignore"):
        state = np.zeros((), np.uint64)
        for part in key:
            state = np.asarray(_finalise((state ^ np.asarray(part).astype(np.uint64)) + GOLDEN))
        return state


def uniform(*key: ArrayLike) -> NDArray[np.float64]:
    """A float64 in [0, 1) with 53 random bits for every key; see :func:`bits`."""
    return np.asarray((bits(*key) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def text_key(text: str) -> int:
    """A 64-bit key for a purpose or a name, so that two uses of one seed never share their draws."""
    state = np.zeros((), np.uint64)
    for byte in text.encode():
        state = bits(state, byte)
    return int(state)
