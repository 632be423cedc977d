"""Which images make up which update: integers in, integers out, no state.

The order of an epoch is a keyed permutation that is computed element by element, so that any rank can ask for any part
of any epoch at any time: a resume in the middle costs nothing, and 42 M images cost no memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facetrain import keyed
from facetrain.errors import InputError

_ROUNDS = 8


def permutation(n: int, seed: int, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Elements of the epoch's random order of 0..n-1.

    A Feistel network over the next power of two (Luby and Rackoff, SIAM J. Comput. 1988), walked along its cycle while
    it falls outside 0..n-1 (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002): a bijection by
    construction, in constant memory.

    Args:
        n: number of images, >= 1.
        seed: the run's seed.
        epoch: which order.
        positions: places in that order, each in 0..n-1, any shape.

    Returns:
        int64 of the shape of ``positions``: the image at each place.
    """
    positions = np.asarray(positions, dtype=np.int64)
    assert n >= 1
    assert positions.size == 0 or (positions.min() >= 0 and positions.max() < n)
    total_bits = max(2, (n - 1).bit_length())
    keys = keyed.bits(seed, keyed.text_key("order"), epoch, np.arange(_ROUNDS))
    values = _feistel(positions.ravel().astype(np.uint64), total_bits, keys)
    outside = np.flatnonzero(values >= n)
    while outside.size:
        values[outside] = _feistel(values[outside], total_bits, keys)
        outside = outside[values[outside] >= n]
    return values.astype(np.int64).reshape(positions.shape)


def _feistel(values: NDArray[np.uint64], total_bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One pass over values of ``total_bits`` bits; a bijection, for each half changes by a function of the other."""
    low_bits = np.uint64(total_bits // 2)
    low_mask = np.uint64((1 << int(low_bits)) - 1)
    high_mask = np.uint64((1 << (total_bits - int(low_bits))) - 1)
    high, low = values >> low_bits, values & low_mask
    for turn in range(0, _ROUNDS, 2):
        high = high ^ (keyed.bits(keys[turn], low) & high_mask)
        low = low ^ (keyed.bits(keys[turn + 1], high) & low_mask)
    return (high << low_bits) | low


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Updates per epoch; the last short batch is left out, and other images fall into it in the next epoch.

    Raises:
        InputError: there are fewer images than one batch needs.
    """
    if n < batch_size:
        raise InputError(
            f"the data have {n} images, fewer than one batch of train.batch_size {batch_size}: "
            f"set train.batch_size to at most {n} or add images"
        )
    return n // batch_size


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> tuple[int, NDArray[np.int64]]:
    """The images of one update over all ranks.

    Args:
        n: number of images.
        batch_size: images per update over all ranks and micro-batches.
        seed: the run's seed.
        step: the update, counted from 0 over all epochs.

    Returns:
        (epoch, (batch_size,) int64 image numbers in 0..n-1); within an epoch no image appears twice.

    Raises:
        InputError: ``n < batch_size``.
    """
    epoch, step_of_epoch = divmod(step, steps_per_epoch(n, batch_size))
    positions = step_of_epoch * batch_size + np.arange(batch_size, dtype=np.int64)
    return epoch, permutation(n, seed, epoch, positions)
