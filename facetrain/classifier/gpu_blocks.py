"""The arithmetic of one block of columns on a GPU: cuBLAS's products, and everything between them in fused kernels."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from facetrain.classifier.blocks import Blocks, SoftmaxSpec, Update, product
from facetrain.classifier.clouds import TABLE
from facetrain.classifier.columns import Columns, Targets, Turned

_TILE_ROWS, _TILE_COLUMNS = 4, 256
_ROWS = 4  # weights that one program of a kernel over weights takes
_FULL_UP_TO = 64  # what the columns of operands that are copied are a multiple of; products of odd sizes are slow


def blocks_for(
    embeddings: Tensor, columns: Columns, targets: Targets, spec: SoftmaxSpec, turned: Turned | None
) -> Blocks:
    """Fused kernels where there are some, else plain PyTorch."""
    made = GpuBlocks if has_kernels(embeddings.device, embeddings.dtype) else Blocks
    return made(embeddings, columns, targets, spec, turned)


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether fused kernels take such tensors: float32 on a GPU with Triton."""
    return device.type == "cuda" and dtype == torch.float32 and fused_kernels() is not None


@functools.cache
def fused_kernels() -> ModuleType | None:
    """The module of kernels; None where Triton is not installed, as with PyTorch for CPUs."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return None
    from facetrain.classifier import kernels

    return kernels


class GpuBlocks(Blocks):
    """:class:`Blocks` whose methods are kernels; the sums of a block's tiles are added up once, in a fixed order."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        kernels = fused_kernels()
        assert kernels is not None
        self.kernels = kernels
        chunk = min(self.spec.chunk, len(self.columns))
        self._tiles = -(-_filled_up(chunk) // _TILE_COLUMNS)  # of a block
        self._sums = torch.zeros(
            (len(self.x), -(-len(self.columns) // max(1, chunk)) * self._tiles), device=self.x.device
        )
        self._cosines = torch.zeros(len(self.x), device=self.x.device)

    def prepare(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The same; a block's operands are filled up with zeros where they are copies."""
        count, size = stop - start, self.x.shape[1]
        rows, table = self._rows(start, stop)
        copies = rows is not None or self.dtype != table.dtype
        n = _filled_up(count) if copies else count
        operand = table.new_empty((n, size), dtype=self.dtype) if copies else table
        inverse = table.new_empty(-(-n // _ROWS) * _ROWS)
        self.kernels.prepare[(-(-n // _ROWS),)](
            table, rows, operand, inverse, count, size,
            HAS_ROWS=rows is not None, COPIES=copies, ROWS=_ROWS, SIZE=_power(size), num_warps=4,
        )  # fmt: skip
        return operand, inverse

    def exponentials(self, start: int, stop: int, operand: Tensor, inverse: Tensor, again: bool = False) -> Tensor:
        """The same, in one kernel after the product."""
        batch, n = len(self.x), len(operand)
        products = product(self.x, operand.T, torch.empty((batch, n), device=self.x.device))
        exps = products if self.dtype == products.dtype else torch.empty_like(products, dtype=self.dtype)
        cloud = self.turned.cloud if self.turned is not None and len(self.turned.cloud.rows) else None
        classes = self.turned.classes[start:stop] if self.turned is not None else range(0)
        sampled = isinstance(classes, Tensor)
        self.kernels.exponentials[(-(-n // _TILE_COLUMNS), -(-batch // _TILE_ROWS))](
            products, inverse, self.targets.of_row, exps, self._sums, self._cosines,
            batch, n, stop - start, start, start // self.spec.chunk * self._tiles, self._sums.shape[1],
            self.spec.margin.scale, self.spec.shift,
            cloud.std if cloud else None, cloud.start if cloud else None, cloud.table if cloud else None,
            classes if sampled else None, 0 if isinstance(classes, Tensor) else classes.start,
            len(cloud.rows) if cloud else 0,
            AGAIN=again, TURNED=cloud is not None, SAMPLED=sampled, PER_CLASS=cloud is not None and cloud.per_class,
            TABLE=TABLE, ROWS=_TILE_ROWS, COLUMNS=_TILE_COLUMNS, num_warps=4,
        )  # fmt: skip
        return exps

    def finish(self) -> Tensor:
        """The same, from the sums of all tiles."""
        torch.sum(self._sums, dim=1, dtype=torch.float64, out=self.exchange[:, 0])
        self.exchange[:, 1] = self._cosines
        return self.exchange

    def put_targets(self, exps: Tensor, start: int, stop: int, values: Tensor, inverse: Tensor) -> None:
        """The same in one kernel."""
        self.kernels.put_targets[(-(-len(exps) // 128),)](
            exps, self.targets.of_row, values, inverse, len(exps), exps.shape[1], stop - start, start, ROWS=128
        )

    def gradient(self, exps: Tensor, factored: Tensor, start: int, stop: int, inverse: Tensor, out: Tensor) -> Tensor:
        """The same, in one kernel after the product."""
        product(exps[:, : stop - start].T, factored, out)
        rows, table = self._rows(start, stop)
        self.kernels.gradient[(-(-len(out) // _ROWS),)](
            out, table, rows, inverse, out, len(out), out.shape[1],
            HAS_ROWS=rows is not None, ROWS=_ROWS, SIZE=_power(out.shape[1]), num_warps=4,
        )  # fmt: skip
        return out

    def update(
        self, exps: Tensor, factored: Tensor, start: int, stop: int, inverse: Tensor, scratch: Tensor, update: Update
    ) -> None:
        """The same; for SGD in one kernel after the product."""
        config = update.optimizer.config
        if config.name != "sgd":
            super().update(exps, factored, start, stop, inverse, scratch, update)
            return
        product(exps[:, : stop - start].T, factored, scratch)
        rows, table = self._rows(start, stop)
        momentum = update.optimizer.state["momentum"]
        self.kernels.sgd[(-(-len(scratch) // _ROWS),)](
            scratch, table, momentum if rows is not None else momentum[start:stop], rows, inverse,
            len(scratch), scratch.shape[1], update.lr, config.momentum, config.weight_decay,
            HAS_ROWS=rows is not None, ROWS=_ROWS, SIZE=_power(scratch.shape[1]), num_warps=4,
        )  # fmt: skip

    def _rows(self, start: int, stop: int) -> tuple[Tensor | None, Tensor]:
        """A block's rows, and the table that they are of; without rows they are this table."""
        where, table = self.columns.where(start, stop), self.columns.table.detach()
        return (where, table) if isinstance(where, Tensor) else (None, table[where])


def _filled_up(columns: int) -> int:
    return -(-columns // _FULL_UP_TO) * _FULL_UP_TO


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()
