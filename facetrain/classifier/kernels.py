# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton kernels around the classifier's matrix products: each reads and writes a block once.

Their references are the methods of :class:`facetrain.classifier.blocks.Blocks` that bear the same names; the tests
compare them in Triton's interpreter. Matrices are contiguous; a block has ``n`` columns, of which those from ``count``
on only fill it up.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Numbers that differ from block to block, which the compiler should not make a kernel of each of.
_VARYING = ["count", "first", "first_class", "part", "parts", "clouds"]


@triton.jit(do_not_specialize=["count"])
def prepare(
    table, rows, operand, inverse, count, size,
    HAS_ROWS: tl.constexpr, COPIES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Inverse norms of a block's weights and, with COPIES, the weights as operands; zeros beyond ``count``."""
    column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    entry = tl.arange(0, SIZE)
    here = column < count
    row = column.to(tl.int64)
    if HAS_ROWS:
        row = tl.load(rows + column, mask=here, other=0)
    inside = (entry < size)[None, :]
    weights = tl.load(table + row[:, None] * size + entry[None, :], mask=here[:, None] & inside, other=0.0)
    norm = tl.sqrt(tl.sum(weights * weights, axis=1))
    tl.store(inverse + column, tl.where(here, 1.0 / tl.maximum(norm, 1e-12), 0.0))
    if COPIES:
        place = column.to(tl.int64)[:, None] * size + entry[None, :]
        tl.store(operand + place, weights.to(operand.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_VARYING)
def exponentials(
    products, inverse, targets, exps, sums, cosines, batch, n, count, first, part, parts, scale, shift,
    std, start, table, classes, first_class, clouds,
    AGAIN: tl.constexpr, TURNED: tl.constexpr, SAMPLED: tl.constexpr, PER_CLASS: tl.constexpr, TABLE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Products (batch, n) to exponentials (batch, n), of one tile; ``exps`` may be ``products``.

    ``sums`` (batch, parts) gets each row's sum over this tile's columns at ``part`` plus the tile's number, ``cosines``
    (batch,) the targets' cosines. Rows below ``clouds`` are turned, see :func:`facetrain.classifier.margin.turn`.
    """
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row_here = row < batch
    stored = row_here[:, None] & (column < n)[None, :]
    here = row_here[:, None] & (column < count)[None, :]
    place = row.to(tl.int64)[:, None] * n + column[None, :]
    norms = tl.load(inverse + column, mask=column < n, other=0.0)[None, :]
    cosine = tl.load(products + place, mask=stored, other=0.0) * norms
    target = tl.load(targets + row, mask=row_here, other=-1) - first
    own = (target[:, None] == column[None, :]) & here
    turned, slope = cosine, norms + tl.zeros((ROWS, COLUMNS), tl.float32)
    if TURNED:  # noqa: SIM102  (known to the compiler; the next line only to the program)
        if tl.program_id(1) * ROWS < clouds:
            cloud = row < clouds
            begin = tl.load(start + row, mask=cloud, other=0)
            spread = tl.load(std + row, mask=cloud, other=0.0)
            if PER_CLASS:
                if SAMPLED:
                    number = tl.load(classes + column, mask=column < count, other=0)
                else:
                    number = column.to(tl.int64) + first_class
                drawn = tl.load(table + ((begin[:, None] + number[None, :]) & (TABLE - 1)))
            else:
                drawn = tl.load(table + begin)[:, None] + tl.zeros((ROWS, COLUMNS), tl.float32)
            alpha = tl.minimum(tl.maximum(drawn * spread[:, None], -3.14159274), 3.14159274)
            across, along = tl.sin(alpha), tl.cos(alpha)
            square = tl.maximum(1.0 - cosine * cosine, 1e-8)
            ratio = tl.rsqrt(square) * across
            low = (alpha < 0) & (cosine > along)
            high = (alpha > 0) & (cosine < -along)
            turned = tl.where(low, 1.0, tl.where(high, -1.0, cosine * along - square * ratio))
            slope = tl.where(low | high, 0.0, along + ratio * cosine) * norms
    values = tl.where(here & (column[None, :] != target[:, None]), tl.exp(turned * scale - shift), 0.0)
    tl.store(exps + place, (values * slope).to(exps.dtype.element_ty), mask=stored)
    if not AGAIN:
        tl.store(sums + row.to(tl.int64) * parts + part + tl.program_id(0), tl.sum(values, axis=1), mask=row_here)
        tl.store(cosines + row[:, None] + tl.zeros((ROWS, COLUMNS), tl.int32), cosine, mask=own)


@triton.jit(do_not_specialize=["count", "first", "batch"])
def put_targets(exps, targets, values, inverse, batch, n, count, first, ROWS: tl.constexpr):
    """Set the targets' places of a block to ``values`` times the inverse norm."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.load(targets + row, mask=row < batch, other=-1) - first
    here = (row < batch) & (column >= 0) & (column < count)
    value = tl.load(values + row, mask=here, other=0.0) * tl.load(inverse + column, mask=here, other=0.0)
    tl.store(exps + row.to(tl.int64) * n + column, value.to(exps.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["count"])
def gradient(
    products, table, rows, inverse, out, count, size, HAS_ROWS: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """Products (count, size) less their part along the weights; ``out`` may be ``products``."""
    column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    entry = tl.arange(0, SIZE)
    here = column < count
    row = column.to(tl.int64)
    if HAS_ROWS:
        row = tl.load(rows + column, mask=here, other=0)
    mask = here[:, None] & (entry < size)[None, :]
    place = column.to(tl.int64)[:, None] * size + entry[None, :]
    found = tl.load(products + place, mask=mask, other=0.0)
    weights = tl.load(table + row[:, None] * size + entry[None, :], mask=mask, other=0.0)
    norms = tl.load(inverse + column, mask=here, other=0.0)
    radial = tl.sum(weights * found, axis=1) * norms * norms
    tl.store(out + place, found - radial[:, None] * weights, mask=mask)


@triton.jit(do_not_specialize=["count"])
def sgd(
    products, table, momentum, rows, inverse, count, size, lr, decay, weight_decay,
    HAS_ROWS: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """:func:`gradient` and the update by SGD with momentum, in one pass over weights and momentum."""
    column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    entry = tl.arange(0, SIZE)
    here = column < count
    row = column.to(tl.int64)
    if HAS_ROWS:
        row = tl.load(rows + column, mask=here, other=0)
    mask = here[:, None] & (entry < size)[None, :]
    there = row[:, None] * size + entry[None, :]
    found = tl.load(products + column.to(tl.int64)[:, None] * size + entry[None, :], mask=mask, other=0.0)
    weights = tl.load(table + there, mask=mask, other=0.0)
    speed = tl.load(momentum + there, mask=mask, other=0.0)
    norms = tl.load(inverse + column, mask=here, other=0.0)
    radial = tl.sum(weights * found, axis=1) * norms * norms
    speed = decay * speed + found + (weight_decay - radial)[:, None] * weights
    tl.store(momentum + there, speed, mask=mask)
    tl.store(table + there, weights - lr * speed, mask=mask)


@triton.jit(do_not_specialize=["count", "first", "state", "limit"])
def draw(
    taken, count, first, state, limit,
    GOLDEN: tl.constexpr, MIX_1: tl.constexpr, MIX_2: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Whether each class's keyed draw, :func:`facetrain.keyed.bits` shifted by 11, is below ``limit``: (count,) uint8.

    ``state`` is what :func:`facetrain.keyed.absorbed` makes of the key before the class.
    """
    number = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    golden = tl.full((CLASSES,), GOLDEN, tl.uint64)
    mix_1 = tl.full((CLASSES,), MIX_1, tl.uint64)
    mix_2 = tl.full((CLASSES,), MIX_2, tl.uint64)
    bits = (number.to(tl.int64) + first).to(tl.uint64) ^ state.to(tl.uint64)
    for _ in tl.static_range(2):  # the class, then the finaliser
        bits = bits + golden
        bits = (bits ^ (bits >> 30)) * mix_1
        bits = (bits ^ (bits >> 27)) * mix_2
        bits = bits ^ (bits >> 31)
    tl.store(taken + number, ((bits >> 11).to(tl.int64) < limit).to(tl.uint8), mask=number < count)


@triton.jit(do_not_specialize=["count"])
def compact(taken, places, rows, count, CLASSES: tl.constexpr):
    """The numbers of the classes that are ``taken`` (count,), in order; ``places`` are the sums of ``taken`` so far."""
    number = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    here = tl.load(taken + number, mask=number < count, other=0) != 0
    place = tl.load(places + number, mask=here, other=1) - 1
    tl.store(rows + place, number.to(tl.int64), mask=here)
