"""Softmax cross-entropy over classes that are spread over ranks, with a hand-written backward pass.

Each rank holds the weights of its own classes and the embeddings of all images. It walks over its classes in chunks, so
that at most (G, chunk) logits exist at once, and keeps of each row two numbers: the sum of its exponentials and, if the
row's own class is here, that class's cosine. One all-reduce of these two floats a row is the whole exchange.

Three numerical decisions:

* no maximum is subtracted: logits are ``s * cosine``, hence at most s, and ``exp(64)`` is far from float32's end; for a
  larger s the constant ``s - 64`` is subtracted;
* the target never enters the float32 sum. Taking it out again would cancel to nothing once a class is learnt;
* the two floats a row, the loss and the probability of the target are float64, with Z the sum of the other classes:
  ``loss = log(1 + exp(log Z - s * phi))``, by a form exact at both ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from facetrain.classifier.clouds import Cloud
from facetrain.classifier.margin import apply_margin, turn
from facetrain.config_loss import MarginConfig
from facetrain.distributed import World, to_device

_LARGEST_EXPONENT = 64.0
_TURNED_AT_ONCE = 1 << 16  # logits; on a CPU these and what is computed of them stay in the cache
_SMALLEST_SUM = 1e-35  # keeps the factor in front of the exponentials within float32 where all of them have underflowed


@dataclass(frozen=True)
class Targets:
    """Where the rows of a batch find their own class among this rank's S columns, ordered by column.

    Attributes:
        rows: (n,) int64 on the device: rows of the batch whose class is here.
        columns: (n,) int64 on the device: their columns, ascending.
        host_columns: the same on the host, so that cutting them into chunks does not wait for the device.
    """

    rows: Tensor
    columns: Tensor
    host_columns: NDArray[np.int64]

    @staticmethod
    def of(columns: NDArray[np.int64], device: torch.device) -> Targets:
        """From the column of every row of the batch, (G,), -1 where the class is another rank's."""
        rows = np.flatnonzero(columns >= 0)
        rows = rows[np.argsort(columns[rows], kind="stable")]
        both = to_device(np.stack([rows, columns[rows]]).astype(np.int64), device)
        return Targets(both[0], both[1], columns[rows])

    def within(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(rows, columns - start) of the targets whose column lies in start..stop."""
        first, last = np.searchsorted(self.host_columns, [start, stop])
        return self.rows[first:last], self.columns[first:last] - start


@dataclass(frozen=True)
class Turned:
    """The first rows of a batch, which have a feature cloud, against this rank's S columns.

    Attributes:
        cloud: their clouds; m rows.
        classes: the global classes of the columns.
        targets: (G,) float64, the angles of every row's own class, 0 for the rows without a cloud.
    """

    cloud: Cloud
    classes: range | Tensor
    targets: Tensor

    def turn_(self, cosines: Tensor, start: int, stop: int) -> Tensor:
        """Turn cosines (G, n) of columns start..stop-1, in place; the derivatives of those with clouds, (m, n)."""
        count, on_cpu = len(self.cloud.rows), cosines.device.type == "cpu"
        slopes = cosines.new_empty((count, stop - start))
        step = max(1, _TURNED_AT_ONCE // (stop - start)) if on_cpu else max(1, count)
        for first in range(0, count, step):
            rows = slice(first, min(first + step, count))
            alpha = self.cloud.alpha(rows, self.classes[start:stop])
            if on_cpu:  # elsewhere the answer to a question would have to be waited for
                low, high = torch.aminmax(cosines[rows])
                clips = max(-float(low), float(high)) >= self._free_of_clips
                cosines[rows], slopes[rows] = turn(cosines[rows], alpha, clips)
            else:
                cosines[rows], slopes[rows] = turn(cosines[rows], alpha)
        return slopes

    @cached_property
    def _free_of_clips(self) -> float:
        """Cosines below this in size belong to angles that no cloud turns out of 0..pi."""
        return math.cos(self.cloud.largest) if self.cloud.largest < math.pi / 2 else 0.0


@dataclass(frozen=True)
class SoftmaxSpec:
    """What the loss needs to know besides tensors."""

    margin: MarginConfig
    chunk: int
    keep_logits: bool
    world: World

    @property
    def shift(self) -> float:
        """What is subtracted from every logit before its exponential."""
        return max(0.0, self.margin.scale - _LARGEST_EXPONENT)


def sharded_cross_entropy(
    embeddings: Tensor, weights: Tensor, targets: Targets, spec: SoftmaxSpec, turned: Turned | None = None
) -> Tensor:
    """Mean margin-softmax loss of a batch over the classes of all ranks; the same scalar on every rank.

    Args:
        embeddings: (G, D) L2-normalised, float32 or float64, the same on every rank.
        weights: (S, D) this rank's class weights, not normalised, of the same dtype; each rank has its own S >= 0.
        targets: each row's class must be among the S columns of exactly one rank.
        spec: margin, chunk size, world.
        turned: the rows with feature clouds (LEAP, Eq. 7 and 8), which must come first; None: no row has one.

    Returns:
        Scalar float64. The gradient of ``weights`` is complete; that of ``embeddings`` is this rank's classes' part, to
        be summed over ranks (:func:`facetrain.distributed.gather_embeddings` does).
    """
    loss: Tensor = _ShardedCrossEntropy.apply(embeddings, weights, targets, spec, turned)
    return loss


class _ShardedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, weights: Tensor, targets: Targets, spec: SoftmaxSpec, turned: Turned | None
    ) -> Tensor:
        scale, shift = spec.margin.scale, spec.shift
        # Per row: the sum of the other classes' exponentials, and the target's cosine.
        exchange = torch.zeros((len(embeddings), 2), dtype=torch.float64, device=embeddings.device)
        inverse_norms = 1 / torch.linalg.vector_norm(weights, dim=1).clamp_min(1e-12)  # (S,)
        kept: dict[int, Tensor] = {}  # first column of a chunk -> its exponentials
        for start in range(0, len(weights), spec.chunk):
            sums, exps, rows, cosines = _exponentials(embeddings, weights, inverse_norms, targets, start, spec, turned)
            exchange[:, 0] += sums
            exchange[rows, 1] = cosines.double()
            if spec.keep_logits:
                kept[start] = exps
        spec.world.sum_(exchange)
        phi, slope = apply_margin(exchange[:, 1], spec.margin, turned.targets if turned else None)  # (G,), (G,)
        others = exchange[:, 0]  # (G,), 0 where there is no other class
        excess = torch.log(others) + shift - scale * phi  # (G,): log of (others' sum / target's exponential)
        wrong = torch.sigmoid(excess)  # (G,): 1 - probability of the target
        # d loss / d cosine, as a mean over rows: scale * exp * wrong / others of the other classes, and
        # -scale * wrong * slope of the target.
        per_row = scale / len(embeddings) * wrong
        other_factor = per_row / others.clamp_min(_SMALLEST_SUM)
        ctx.save_for_backward(embeddings, weights, inverse_norms, other_factor, -per_row * slope)
        ctx.targets, ctx.spec, ctx.turned, ctx.kept = targets, spec, turned, kept
        return -F.logsigmoid(-excess).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        embeddings, weights, inverse_norms, other_factor, target_grad = ctx.saved_tensors
        spec: SoftmaxSpec = ctx.spec
        other_factor = (grads[0] * other_factor).to(embeddings.dtype)[:, None]  # (G, 1)
        target_grad = (grads[0] * target_grad).to(embeddings.dtype)  # (G,)
        d_embeddings = torch.zeros_like(embeddings)
        d_weights = torch.empty_like(weights)
        for start in range(0, len(weights), spec.chunk):
            stop = min(start + spec.chunk, len(weights))
            exps = ctx.kept.pop(start, None)  # freed as it is used; a second backward pass computes it again
            if exps is None:
                _, exps, _, _ = _exponentials(embeddings, weights, inverse_norms, ctx.targets, start, spec, ctx.turned)
            d_cosines = exps.mul_(other_factor)  # (G, chunk)
            rows, columns = ctx.targets.within(start, stop)
            d_cosines[rows, columns] = target_grad[rows]
            inverse, chunk = inverse_norms[start:stop, None], weights[start:stop]
            # cosine = x . w / |w|, so dw = (g - w (w . g) / |w|^2) / |w| with g = sum of d_cosine * x.
            out = d_weights[start:stop]
            torch.mm(d_cosines.T, embeddings, out=out)
            radial = torch.linalg.vecdot(chunk, out)[:, None] * inverse.square()
            out.addcmul_(chunk, radial, value=-1).mul_(inverse)
            d_embeddings.addmm_(d_cosines.mul_(inverse.T), chunk)
        return d_embeddings, d_weights, None, None, None


def _exponentials(
    embeddings: Tensor,
    weights: Tensor,
    inverse_norms: Tensor,
    targets: Targets,
    start: int,
    spec: SoftmaxSpec,
    turned: Turned | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The logits of one chunk of columns.

    Returns:
        (G,) sums over the chunk of ``exp(s * cosine - shift)`` without targets; (G, chunk) those exponentials times the
        derivative of the turned by the plain cosine; rows and cosines of the targets in the chunk, (n,).
    """
    stop = min(start + spec.chunk, len(weights))
    cosines = torch.mm(embeddings, weights[start:stop].T).mul_(inverse_norms[start:stop])
    rows, columns = targets.within(start, stop)
    target_cosines = cosines[rows, columns]
    slopes = None
    if turned:
        cosines.index_put_((rows, columns), cosines.new_zeros(()))  # a learnt target would be clipped, for nothing
        slopes = turned.turn_(cosines, start, stop)
    cosines.index_put_((rows, columns), cosines.new_full((), -torch.inf))  # a Python number would wait for the device
    exps = cosines.mul_(spec.margin.scale).sub_(spec.shift).exp_()
    sums = exps.sum(dim=1)
    if slopes is not None:
        exps[: len(slopes)].mul_(slopes)
    return sums, exps, rows, target_cosines
