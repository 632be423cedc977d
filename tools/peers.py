"""The classifier as others write it, plainly and for comparison only: the textbook's way and partial FC's.

Both end with torch.optim.SGD over all weights, as their projects do. Partial FC follows its paper (An et al., CVPR
2022) and what its public code does at each step, for one rank; the collectives it would need are the identity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE, MARGIN = 64.0, 0.35


def _weights(classes: int, x: Tensor, lr: float) -> tuple[Tensor, torch.optim.Optimizer]:
    weights = torch.randn((classes, x.shape[1]), device=x.device).mul_(0.01).requires_grad_()
    return weights, torch.optim.SGD([weights], lr, momentum=0.9, weight_decay=5e-4)


def dense(classes: int, x: Tensor, labels: Tensor, lr: float, rate: float) -> Callable[[], object]:
    """Normalise, multiply, subtract the margin at a one-hot matrix, cross-entropy, autograd; ``rate`` must be 1."""
    assert rate == 1
    weights, optimizer = _weights(classes, x, lr)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        cosines = F.linear(F.normalize(x), F.normalize(weights))
        one_hot = torch.zeros_like(cosines).scatter_(1, labels[:, None], 1.0)
        F.cross_entropy(SCALE * (cosines - MARGIN * one_hot), labels).backward()
        optimizer.step()
        x.grad = None

    return step


class _ShardedSoftmax(torch.autograd.Function):
    """Cross-entropy from a row's largest logit, sum of exponentials and target's probability, each over all ranks."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, logits: Tensor, labels: Tensor) -> Tensor:
        largest = logits.max(dim=1, keepdim=True).values  # all-reduce (max)
        exponentials = torch.exp(logits - largest)
        exponentials.div_(exponentials.sum(dim=1, keepdim=True))  # all-reduce (sum)
        right = exponentials.gather(1, labels[:, None])  # all-reduce (sum)
        ctx.save_for_backward(exponentials, labels)
        return -right.clamp_min(1e-30).log().mean()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        probabilities, labels = ctx.saved_tensors  # type: ignore[attr-defined]
        one_hot = torch.zeros_like(probabilities).scatter_(1, labels[:, None], 1.0)
        return (probabilities - one_hot) / len(labels) * grads[0].item(), None


def partial_fc(classes: int, x: Tensor, labels: Tensor, lr: float, rate: float) -> Callable[[], object]:
    """A sample with exact size whose rows autograd takes from the whole table; a dense gradient and update."""
    weights, optimizer = _weights(classes, x, lr)

    def sampled() -> tuple[Tensor, Tensor]:
        present = torch.unique(labels, sorted=True)
        score = torch.rand(classes).to(x.device)  # drawn on the host
        score[present] = 2.0
        index = torch.topk(score, max(int(rate * classes), len(present))).indices.sort().values
        return weights[index], torch.searchsorted(index, labels)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        rows, places = sampled() if rate < 1 else (weights, labels)
        logits = F.linear(F.normalize(x), F.normalize(rows)).clamp(-1, 1)
        margins = torch.zeros_like(logits).scatter_(1, places[:, None], MARGIN)
        loss = _ShardedSoftmax.apply((logits - margins) * SCALE, places)
        loss.backward()
        optimizer.step()
        x.grad = None

    return step
