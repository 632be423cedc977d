"""Softmax cross-entropy over classes that are spread over ranks, with a hand-written backward pass.

Each rank holds the weights of its own classes and the embeddings of all images. It walks over its classes in blocks and
keeps two numbers of each row: the sum of its exponentials and, if the row's own class is here, that class's cosine. One
all-reduce of these two floats a row is the whole exchange.

The backward pass needs the exponentials again. Those of the first blocks are kept, up to a budget of memory; the others
are computed anew (a fourth matrix product instead of three). It ends a block by writing its gradient down or, given
an :class:`~facetrain.classifier.blocks.Update`, by updating its weights at once, so that beside weights and momentum
nothing larger than a block is ever in memory.

Three numerical decisions:

* no maximum is subtracted: logits are ``s * cosine``, hence at most s, and ``exp(64)`` is far from float32's end; for a
  larger s the constant ``s - 64`` is subtracted;
* the target never enters the float32 sum. Taking it out again would cancel to nothing once a class is learnt;
* the two floats a row, the loss and the probability of the target are float64, with Z the sum of the other classes:
  ``loss = log(1 + exp(log Z - s * phi))``, by a form exact at both ends.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facetrain.classifier.blocks import Blocks, SoftmaxSpec, Update, add_product
from facetrain.classifier.columns import Columns, Targets, Turned
from facetrain.classifier.gpu_blocks import blocks_for
from facetrain.classifier.margin import apply_margin

_SMALLEST_SUM = 1e-35  # keeps the factor in front of the exponentials within float32 where all of them have underflowed


def sharded_cross_entropy(
    embeddings: Tensor,
    weights: Tensor | Columns,
    targets: Targets,
    spec: SoftmaxSpec,
    turned: Turned | None = None,
    update: Update | None = None,
) -> Tensor:
    """Mean margin-softmax loss of a batch over the classes of all ranks; the same scalar on every rank.

    Args:
        embeddings: (G, D) L2-normalised, float32 or float64, the same on every rank.
        weights: (S, D) this rank's class weights, not normalised, of the same dtype; each rank has its own S >= 0.
            With an ``update`` the columns whose table it changes.
        targets: each row's class must be among the S columns of exactly one rank.
        spec: margin, block size, budget, world.
        turned: the rows with feature clouds (LEAP, Eq. 7 and 8), which must come first; None: no row has one.
        update: the backward pass updates the weights instead of making a gradient for them; it can run only once.

    Returns:
        Scalar float64. The gradient of ``weights`` is complete; that of ``embeddings`` is this rank's classes' part, to
        be summed over ranks (:func:`facetrain.distributed.gather_embeddings` does).
    """
    columns = weights if isinstance(weights, Columns) else Columns(weights.detach())
    leaf = weights if isinstance(weights, Tensor) else None
    loss: Tensor = _ShardedCrossEntropy.apply(embeddings, leaf, columns, targets, spec, turned, update)
    return loss


class _ShardedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        leaf: Tensor | None,
        columns: Columns,
        targets: Targets,
        spec: SoftmaxSpec,
        turned: Turned | None,
        update: Update | None,
    ) -> Tensor:
        scale = spec.margin.scale
        blocks = blocks_for(embeddings, columns, targets, spec, turned)
        inverse = embeddings.new_empty(len(columns))  # (S,) inverse norms of the weights
        kept: dict[int, tuple[Tensor, Tensor]] = {}  # first column of a block -> its exponentials and operands
        room = spec.keep_bytes
        for start, stop in _cut(len(columns), spec.chunk):
            operand, of_block = blocks.prepare(start, stop)
            inverse[start:stop] = of_block[: stop - start]
            exps = blocks.exponentials(start, stop, operand, of_block)
            owned = operand if operand.dtype != columns.table.dtype or columns.rows is not None else operand[:0]
            room -= sum(tensor.numel() * tensor.element_size() for tensor in (exps, owned))
            if room >= 0:
                kept[start] = exps, operand
            else:
                spec.scratch.give(exps)
        exchange = spec.world.sum_(blocks.finish())
        phi, slope = apply_margin(exchange[:, 1], spec.margin, turned.targets if turned else None)  # (G,), (G,)
        others = exchange[:, 0]  # (G,), 0 where there is no other class
        excess = torch.log(others) + spec.shift - scale * phi  # (G,): log of (others' sum / target's exponential)
        # d loss / d cosine, as a mean over rows: factor * exp of the other classes, and -factor * others * slope of the
        # target, where factor = scale / G * (1 - probability of the target) / others.
        others = others.clamp_min(_SMALLEST_SUM)
        factor = scale / len(embeddings) * torch.sigmoid(excess) / others
        ctx.save_for_backward(embeddings, inverse, factor, -others * slope)
        ctx.blocks, ctx.kept, ctx.spec, ctx.update = blocks, kept, spec, update
        return -F.logsigmoid(-excess).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, inverse, factor, target_values = ctx.saved_tensors
        blocks: Blocks = ctx.blocks
        spec: SoftmaxSpec = ctx.spec
        update: Update | None = ctx.update
        factor = (grads[0] * factor).to(embeddings.dtype)[:, None]  # (G, 1)
        factored = (embeddings * factor).to(blocks.dtype)
        values = target_values.to(embeddings.dtype)
        d_embeddings = torch.zeros_like(embeddings)
        columns = blocks.columns
        dense = torch.empty_like(columns.table) if update is None else None
        for start, stop in _cut(len(columns), spec.chunk):
            # Freed as they are used; a second backward pass computes them again.
            exps, operand = ctx.kept.pop(start, (None, None))
            of_block = inverse[start:stop]
            if exps is None or operand is None:
                operand, prepared = blocks.prepare(start, stop)
                exps = blocks.exponentials(start, stop, operand, prepared, again=True)
            blocks.put_targets(exps, start, stop, values, of_block)
            add_product(d_embeddings, exps, operand)
            if dense is not None:
                blocks.gradient(exps, factored, start, stop, of_block, dense[start:stop])
            elif update is not None:
                room = spec.scratch.take((stop - start, embeddings.shape[1]), embeddings, embeddings.dtype)
                blocks.update(exps, factored, start, stop, of_block, room, update)
                spec.scratch.give(room)
            spec.scratch.give(exps)
        return d_embeddings.mul_(factor), dense, None, None, None, None, None


def _cut(columns: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, columns)) for start in range(0, columns, size)]
