"""Margins on the cosine of the target class; no state, no rank, no autograd.

``phi = cos(m1 * theta + m2) - m3`` holds CosFace (Wang et al., CVPR 2018: m3), ArcFace (Deng et al., CVPR 2019: m2) and
SphereFace (Liu et al., CVPR 2017: m1) as ArcFace's Eq. 4 combines them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facetrain.config import MarginConfig

# The exact gradient has 1 / sin(theta), infinite for a perfectly learnt row, where the projection behind it (of size
# sin(theta)) makes the product finite again. Bounding it keeps rounding from turning that into 0 * inf.
_SMALLEST_SINE = 1e-4


def apply_margin(cosine: Tensor, margin: MarginConfig) -> tuple[Tensor, Tensor]:
    """The target's cosine with its margin, and the gradient to use for it.

    The angle ``a = m1 * theta + m2`` can pass pi, where cos(a) would turn upwards and reward the wrong direction. With
    m1 = 1 the value goes on as ``cos(theta) - m2 * sin(m2)`` there, as ArcFace's authors have it; with m1 > 1 as
    SphereFace's monotone extension ``(-1)**k * cos(a) - 2 * k``, k = floor(a / pi) (its Eq. 7).

    Args:
        cosine: (n,) cosines of the target classes, float32 or float64; values beyond -1..1 by rounding are clipped.
        margin: the margin and which gradient it uses. ``straight_through`` is 1: the margin's value with the plain
            cosine's gradient, as insightface's models since December 2022 were trained. ``exact`` is the derivative.

    Returns:
        (phi, dphi / dcosine), both (n,).
    """
    m1, m2, m3 = margin.parameters
    cosine = cosine.clamp(-1, 1)
    if m1 == 1 and m2 == 0:
        return cosine - m3, torch.ones_like(cosine)
    theta = torch.arccos(cosine)
    angle = m1 * theta + m2
    slope = m1 * torch.sin(angle) / torch.sin(theta).clamp_min(_SMALLEST_SINE)
    if m1 == 1:
        beyond = angle > math.pi
        phi = torch.where(beyond, cosine - m2 * math.sin(m2), torch.cos(angle))
        slope = torch.where(beyond, torch.ones_like(slope), slope)
    else:
        turn = torch.floor(angle / math.pi)
        sign = 1 - 2 * torch.remainder(turn, 2)
        phi = sign * torch.cos(angle) - 2 * turn
        slope = sign * slope
    if margin.gradient == "straight_through":
        slope = torch.ones_like(slope)
    return phi - m3, slope
