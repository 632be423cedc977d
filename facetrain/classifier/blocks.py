"""The arithmetic of one block of columns, in PyTorch: the reference, and what runs where there is no GPU.

:class:`Blocks` holds a batch and hands out, block by block, the exponentials and what becomes of them.
:class:`facetrain.classifier.gpu_blocks.GpuBlocks` computes the same with fused kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from facetrain.classifier.columns import Columns, Targets, Turned
from facetrain.classifier.rows import RowOptimizer
from facetrain.config_loss import MarginConfig
from facetrain.distributed import World

_LARGEST_EXPONENT = 64.0


@dataclass(frozen=True)
class Update:
    """How the columns' weights are updated as soon as their gradient is known, a block at a time."""

    optimizer: RowOptimizer
    lr: float


class Scratch:
    """Memory that is used again: the fresh pages of large tensors cost a CPU as much as arithmetic on them."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, shape: tuple[int, int], like: Tensor, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor on ``like``'s device, from what was given back where it fits."""
        size = shape[0] * shape[1]
        for place, held in enumerate(self._free):
            if held.dtype == dtype and held.device == like.device and held.numel() >= size:
                return self._free.pop(place)[:size].view(shape)
        return torch.empty(size, dtype=dtype, device=like.device).view(shape)

    def give(self, tensor: Tensor) -> None:
        """Nobody uses this tensor any more. A GPU's memory goes back to torch's own allocator."""
        if tensor.device.type == "cpu":
            base = tensor if tensor._base is None else tensor._base
            self._free.append(base.view(-1))


@dataclass(frozen=True)
class SoftmaxSpec:
    """What the loss needs to know besides tensors.

    Attributes:
        chunk: columns in a block.
        keep_bytes: memory for exponentials that are kept for the backward pass.
        precision: of the operands of matrix products; bf16 takes float32 tensors. Sums are float32 in both.
        scratch: memory of former steps.
    """

    margin: MarginConfig
    chunk: int
    keep_bytes: float
    world: World
    precision: Literal["fp32", "bf16"] = "fp32"
    scratch: Scratch = field(default_factory=Scratch)

    @property
    def shift(self) -> float:
        """What is subtracted from every logit before its exponential."""
        return max(0.0, self.margin.scale - _LARGEST_EXPONENT)


class Blocks:
    """A batch against this rank's columns.

    Attributes:
        x: (G, D) the normalised embeddings as operands of matrix products.
        exchange: (G, 2) float64: per row the sum of the other classes' exponentials, and the target's cosine; filled
            by :meth:`exponentials`, complete after :meth:`finish`.
    """

    def __init__(
        self, embeddings: Tensor, columns: Columns, targets: Targets, spec: SoftmaxSpec, turned: Turned | None
    ) -> None:
        self.columns, self.targets, self.turned, self.spec = columns, targets, turned, spec
        self.dtype = torch.bfloat16 if spec.precision == "bf16" else embeddings.dtype
        self.x = embeddings.to(self.dtype)
        self.full = embeddings.dtype
        self.exchange = torch.zeros((len(embeddings), 2), dtype=torch.float64, device=embeddings.device)

    def prepare(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The weights of columns start..stop-1 as operands (n, D), and their inverse norms (n,)."""
        values = self.columns.table[self.columns.where(start, stop)]
        inverse = 1 / torch.linalg.vector_norm(values, dim=1).clamp_min(1e-12)
        return values.to(self.dtype), inverse

    def exponentials(self, start: int, stop: int, operand: Tensor, inverse: Tensor, again: bool = False) -> Tensor:
        """The exponentials of a block, each times d turned / d plain cosine and the inverse norm of its column.

        Args:
            start: the block's first column.
            stop: its last, exclusive.
            operand: of :meth:`prepare`.
            inverse: of :meth:`prepare`.
            again: they are computed anew in the backward pass: the sums are known.

        Returns:
            (G, n), 0 for targets.
        """
        products = self.spec.scratch.take((len(self.x), stop - start), self.x, self.full)
        product(self.x, operand.T, products)
        rows, columns = self.targets.within(start, stop)
        # Without clouds cosines are never seen: one pass makes products logits.
        factor = 1.0 if self.turned else self.spec.margin.scale
        scaled = products.mul_(inverse * factor)
        if not again:
            self.exchange[rows, 1] = (scaled[rows, columns] / factor).double()
        slopes = None
        if self.turned:
            scaled.index_put_((rows, columns), scaled.new_zeros(()))  # a learnt target would be clipped, for nothing
            slopes = self.turned.turn_(scaled, start, stop)
            scaled.mul_(self.spec.margin.scale)
        scaled.index_put_((rows, columns), scaled.new_full((), -torch.inf))  # a Python number would wait for the device
        if self.spec.shift:
            scaled.sub_(self.spec.shift)
        exps = scaled.exp_()
        if not again:
            self.exchange[:, 0] += exps.sum(dim=1)
        if slopes is not None:
            exps[: len(slopes)].mul_(slopes)
        exps.mul_(inverse)
        if self.dtype == self.full:
            return exps
        rounded = self.spec.scratch.take((len(self.x), stop - start), self.x, self.dtype).copy_(exps)
        self.spec.scratch.give(exps)
        return rounded

    def finish(self) -> Tensor:
        """``exchange``, of all blocks."""
        return self.exchange

    def put_targets(self, exps: Tensor, start: int, stop: int, values: Tensor, inverse: Tensor) -> None:
        """Set the targets' places among the exponentials of a block to ``values`` (G,) times the inverse norm."""
        rows, columns = self.targets.within(start, stop)
        exps.index_put_((rows, columns), (values[rows] * inverse[columns]).to(exps.dtype))

    def gradient(self, exps: Tensor, factored: Tensor, start: int, stop: int, inverse: Tensor, out: Tensor) -> Tensor:
        """The gradient of a block's weights into ``out`` (n, D), from the exponentials and (G, D) factored embeddings.

        cosine = x . w / |w|, so dw = g - w (w . g) / |w|^2 with g the sum of d loss / d cosine * x / |w|.
        """
        product(exps.T, factored, out)
        return _without_radial(out, self.columns.table[self.columns.where(start, stop)], inverse)

    def update(
        self, exps: Tensor, factored: Tensor, start: int, stop: int, inverse: Tensor, scratch: Tensor, update: Update
    ) -> None:
        """Update a block's weights with their gradient, for which there is ``scratch`` (n, D)."""
        table, where = self.columns.table, self.columns.where(start, stop)
        values = table[where]
        product(exps[:, : stop - start].T, factored, scratch)
        gradient = _without_radial(scratch, values, inverse)
        update.optimizer.step(table, where, values, gradient, update.lr)


def _without_radial(products: Tensor, weights: Tensor, inverse: Tensor) -> Tensor:
    """Products (n, D) less their part along the weights, in place."""
    radial = torch.linalg.vecdot(weights, products).mul_(inverse).mul_(inverse)
    return products.addcmul_(weights, radial[:, None], value=-1)


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``a @ b`` into ``out``, which is float32 where they are bfloat16: sums are float32 whatever the operands."""
    if a.dtype != torch.bfloat16:
        return torch.mm(a, b, out=out)
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)  # a CPU's own bfloat16 products round their sums


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``; see :func:`product`."""
    if a.dtype != torch.bfloat16:
        total.addmm_(a, b)
    elif a.device.type == "cuda":
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())
