"""Inner products of queries with a gallery, a block of the gallery at a time: what a search reads its answers from.

Scores are float32 products. A score depends neither on how the gallery is cut into blocks, nor on the order of rows,
nor on the other queries, as far as the BLAS library sums in one order wherever a row stands: MKL does, and OpenBLAS's
AVX-512 kernels do, once neither side has only a handful of rows, so smaller ones are padded here. Of two libraries that
do, the faster one for the processor is taken, see :func:`numpy_multiplies`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facetrain.errors import InputError

Gallery: TypeAlias = NDArray | Iterable[NDArray]
"""(N, D) float32 or float16, or such blocks one after another: a list, or a generator that reads them as they go."""

BLOCK = 4096
"""Gallery rows of one product: many enough for BLAS, few enough that the scores of 4,000 queries take 65 MB."""
QUERIES = 4096
"""Queries of one product."""
FEWEST = 64
"""Rows that each side of a product is padded to; below, BLAS libraries take other routes with other roundings."""


def scored_blocks(
    queries: NDArray, gallery: Gallery, *, block: int = BLOCK, device: torch.device | None = None
) -> Iterator[tuple[slice, int, Tensor]]:
    """The scores of all queries with all rows of the gallery, a block at a time, in the gallery's order.

    Args:
        queries: (Q, D) real, at least one.
        gallery: see :data:`Gallery`.
        block: gallery rows at a time.
        device: where the products are computed; None: the CPU.

    Yields:
        (which queries, first gallery row, scores (q, n) float32 on ``device``); the scores are overwritten by the next.

    Raises:
        InputError: shapes do not fit, or a number is not finite.
    """
    rows = _matrix(queries, "queries")
    if block < 1:
        raise InputError(f"block = {block} must be 1 or more")
    place = device or torch.device("cpu")
    parts = [
        (slice(a, min(a + QUERIES, len(rows))), _padded(_finite(rows[a : a + QUERIES], "query", a).clone(), place))
        for a in range(0, len(rows), QUERIES)
    ]
    room = torch.empty(0, device=place)
    start = 0
    for piece in _pieces(gallery, block):
        if piece.shape[1] != rows.shape[1]:
            raise InputError(
                f"queries have {rows.shape[1]} numbers each and gallery rows {piece.shape[1]}; both must come from one "
                "model"
            )
        held = _padded(_finite(piece, "gallery row", start), place)
        for at, part in parts:
            size = len(part) * len(held)
            if len(room) < size:
                room = torch.empty(size, device=place)
            scores = room[:size].view(len(part), len(held))
            _multiply(part, held, scores)
            yield at, start, scores[: at.stop - at.start, : len(piece)]
        start += len(piece)


@functools.cache
def numpy_multiplies() -> bool:
    """Whether NumPy's BLAS computes products on the CPU instead of PyTorch's.

    PyTorch's MKL leaves the AVX-512 of an AMD processor unused, where OpenBLAS is twice as fast
    (docs/benchmarks/megaface.md). OpenBLAS is taken only with kernels that sum in one order wherever a row stands; its
    AVX2 kernels, which the variable OPENBLAS_CORETYPE may force on it, do not.
    """
    try:
        amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return amd and _one_order()


def _one_order() -> bool:
    """Whether NumPy gives a product's numbers the same bits when the rows on both sides are in another order."""
    random = np.random.default_rng(0)
    left, right = random.standard_normal((100, 40), np.float32), random.standard_normal((150, 40), np.float32)
    whole = left @ right.T
    rows, columns = random.permutation(100), random.permutation(150)
    same = np.array_equal(left[rows] @ right[columns].T, whole[rows][:, columns])
    return same and np.array_equal(left[:FEWEST] @ right[:FEWEST].T, whole[:FEWEST, :FEWEST])


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """(q, D) and (n, D) float32 to (q, n); the two sides share no memory, for which NumPy would take another route."""
    if left.device.type == "cpu" and numpy_multiplies():
        np.matmul(left.numpy(), right.numpy().T, out=out.numpy())
    else:
        torch.mm(left, right.T, out=out)


def _matrix(rows: NDArray, what: str) -> NDArray:
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind != "f":
        raise InputError(f"{what} {rows.shape} {rows.dtype} must be a matrix of real numbers, a row for each image")
    return rows


def _pieces(gallery: Gallery, block: int) -> Iterator[NDArray]:
    for part in [gallery] if isinstance(gallery, np.ndarray) else gallery:
        if len(part):
            whole = _matrix(part, "gallery")
            yield from (whole[a : a + block] for a in range(0, len(whole), block))


def _finite(rows: NDArray, what: str, first: int) -> Tensor:
    """(n, D) float32, a copy only where the type or the memory's layout ask for one."""
    wanted = np.ascontiguousarray(rows, dtype=np.float32)
    tensor = torch.from_numpy(wanted if wanted.flags.writeable else wanted.copy())  # torch warns of read-only memory
    if not torch.isfinite(tensor.sum()):
        finite = torch.isfinite(tensor).all(dim=1)
        if not finite.all():
            at = first + int(finite.logical_not().nonzero()[0])
            raise InputError(f"{what} {at} holds a number that is not finite; look at what made that feature")
    return tensor


def _padded(rows: Tensor, device: torch.device) -> Tensor:
    if len(rows) >= FEWEST:
        return rows.to(device)
    return torch.cat([rows, rows.new_zeros((FEWEST - len(rows), rows.shape[1]))]).to(device)
