"""Which images make up which update: integers in, integers out, no state.

The order of an epoch is a keyed permutation that is computed element by element, so that any rank can ask for any part
of any epoch at any time: a resume in the middle costs nothing, and 42 M images cost no memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from facetrain import keyed
from facetrain.errors import InputError

_ROUNDS = 8
_ORDER = keyed.text_key("order")
# Arrays without axes, which NumPy takes as they are; a number it would convert at every call.
_27, _30, _31 = (np.array(bits, np.uint64) for bits in (27, 30, 31))
_GOLDEN, _MIX_1, _MIX_2 = (np.array(factor) for factor in (keyed.GOLDEN, keyed.MIX_1, keyed.MIX_2))


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
    states = keyed.absorbed(keyed.bits(seed, _ORDER, epoch, np.arange(_ROUNDS)))
    values = _feistel(positions.ravel().astype(np.uint64), total_bits, states)
    outside = np.flatnonzero(values >= n)
    while outside.size:
        values[outside] = _feistel(values[outside], total_bits, states)
        outside = outside[values[outside] >= n]
    return values.astype(np.int64).reshape(positions.shape)


def _feistel(values: NDArray[np.uint64], total_bits: int, states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One pass over values of ``total_bits`` bits; a bijection, for each half changes by a function of the other."""
    low_bits = np.array(total_bits // 2, np.uint64)
    low_mask = np.array((1 << total_bits // 2) - 1, np.uint64)
    high_mask = np.array((1 << total_bits - total_bits // 2) - 1, np.uint64)
    high, low = values >> low_bits, values & low_mask
    for turn in range(0, _ROUNDS, 2):
        high ^= _bits(states[turn, ...], low) & high_mask
        low ^= _bits(states[turn + 1, ...], high) & low_mask
    return (high << low_bits) | low


def _bits(state: NDArray[np.uint64], values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """``keyed.bits(key, values)`` where ``state``, without axes, is ``keyed.absorbed(key)``; in a third of the time.

    Calls of NumPy are nearly all that the order of a few hundred images costs.
    """
    z = values ^ state
    for _ in range(2):
        z += _GOLDEN
        z ^= z >> _30
        z *= _MIX_1
        z ^= z >> _27
        z *= _MIX_2
        z ^= z >> _31
    return z


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
    ((epoch, indices),) = batches_indices(n, batch_size, seed, [step])
    return epoch, indices


def batches_indices(n: int, batch_size: int, seed: int, steps: Sequence[int]) -> list[tuple[int, NDArray[np.int64]]]:
    """:func:`batch_indices` of several updates, for which it takes hardly more time than for one.

    Raises:
        InputError: ``n < batch_size``.
    """
    epochs, places = np.divmod(np.asarray(steps, np.int64), steps_per_epoch(n, batch_size))
    positions = places[:, None] * batch_size + np.arange(batch_size, dtype=np.int64)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        indices[epochs == epoch] = permutation(n, seed, epoch, positions[epochs == epoch])
    return list(zip(epochs.tolist(), indices, strict=True))
