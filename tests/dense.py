"""The margin softmax as a textbook writes it: one process, float64, a loop over rows, autograd. For comparison only."""

import math

import torch
from torch import Tensor

from facetrain.config_loss import MarginConfig


def target_value(theta: Tensor, margin: MarginConfig) -> Tensor:
    """phi(theta) of one target, from the definitions (ArcFace Eq. 4, SphereFace Eq. 7), with autograd's gradient."""
    m1, m2, m3 = margin.parameters
    angle = m1 * theta + m2
    if m1 == 1:
        if angle <= math.pi:
            return torch.cos(angle) - m3
        return torch.cos(theta) - m2 * math.sin(m2) - m3
    k = math.floor(angle.item() / math.pi)
    return (-1) ** k * torch.cos(angle) - 2 * k - m3


def dense_loss(embeddings: Tensor, weights: Tensor, labels: list[int], margin: MarginConfig, columns=None) -> Tensor:
    """Mean cross-entropy over the classes in ``columns`` (default: all)."""
    columns = list(range(len(weights))) if columns is None else list(columns)
    total = torch.zeros((), dtype=torch.float64)
    for x, label in zip(embeddings, labels, strict=True):
        logits, own = [], None
        for column in columns:
            cosine = (x / x.norm()) @ (weights[column] / weights[column].norm())
            if column == label:
                exact = target_value(torch.arccos(cosine), margin)
                if margin.gradient == "straight_through":
                    cosine = cosine + (exact - cosine).detach()
                else:
                    cosine = exact
                own = margin.scale * cosine
            else:
                logits.append(margin.scale * cosine)
        # -log(e^own / sum) = log(1 + sum of the others' e^(logit - own)), which loses nothing for a learnt class.
        total = total + torch.log1p(torch.exp(torch.stack(logits) - own).sum())
    return total / len(labels)
