"""Margins and cloud angles on cosines; no state, no rank, no autograd.

``phi = cos(m1 * theta + m2) - m3`` holds CosFace (Wang et al., CVPR 2018: m3), ArcFace (Deng et al., CVPR 2019: m2) and
SphereFace (Liu et al., CVPR 2017: m1) as ArcFace's Eq. 4 combines them. A feature cloud (LEAP: Liu et al., CVPR 2020,
Eq. 7 and 8) turns every angle of a row by some alpha first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from facetrain.config_loss import MarginConfig

# The exact gradient has 1 / sin(theta), infinite for a perfectly learnt row, where the projection behind it (of size
# sin(theta)) makes the product finite again. Bounding it keeps rounding from turning that into 0 * inf.
_SMALLEST_SINE = 1e-4


def apply_margin(cosine: Tensor, margin: MarginConfig, alpha: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The target's cosine with its cloud angle and its margin, and the gradient to use for it.

    With ``t = min(theta + alpha, pi)``, the angle ``a = m1 * t + m2`` can pass pi, where cos(a) would turn upwards and
    reward the wrong direction. With m1 = 1 the value goes on as ``cos(t) - m2 * sin(m2)`` there, as ArcFace's authors
    have it; with m1 > 1 as SphereFace's monotone extension ``(-1)**k * cos(a) - 2 * k``, k = floor(a / pi) (its Eq. 7).
    LEAP's Eq. 8 clips a at pi instead, which has a minimum without gradient where every angle is pi: ln C.
    Below 0, where only alpha leads, a is clipped as printed. Clipped values have no gradient.

    Args:
        cosine: (n,) cosines of the target classes, float32 or float64; values beyond -1..1 by rounding are clipped.
        margin: the margin and which gradient it uses. ``straight_through`` is the gradient of cos(theta + alpha): the
            margin's value with the plain cosine's gradient, as insightface's models since December 2022 were trained.
            ``exact`` is the derivative.
        alpha: (n,) cloud angles in radians; None: none.

    Returns:
        (phi, dphi / dcosine), both (n,).
    """
    m1, m2, m3 = margin.parameters
    cosine = cosine.clamp(-1, 1)
    if alpha is None and m1 == 1 and m2 == 0:
        return cosine - m3, torch.ones_like(cosine)
    theta = torch.arccos(cosine)
    sine = torch.sin(theta).clamp_min(_SMALLEST_SINE)
    turned, plain = theta, torch.ones_like(theta)  # the angle, and d cos(turned) / d cosine
    if alpha is not None:
        turned = theta + alpha
        inside = (turned > 0) & (turned < math.pi)
        plain = torch.where(alpha == 0, plain, torch.sin(turned) / sine * inside)
        turned = turned.clamp_max(math.pi)
        if m1 == 1 and m2 == 0:
            return torch.cos(turned.clamp_min(0)) - m3, plain
    angle = m1 * turned + m2
    slope = m1 * torch.sin(angle) / sine
    if m1 == 1:
        beyond = angle > math.pi
        phi = torch.where(beyond, torch.cos(turned) - m2 * math.sin(m2), torch.cos(angle))
        slope = torch.where(beyond, plain, slope)
    else:
        half_turns = torch.floor(angle / math.pi)
        sign = 1 - 2 * torch.remainder(half_turns, 2)
        phi = sign * torch.cos(angle) - 2 * half_turns
        slope = sign * slope
    if alpha is not None:
        phi = torch.where(angle < 0, torch.ones_like(phi), phi)
        slope = slope * ((alpha == 0) | ((angle > 0) & (theta + alpha < math.pi)))
    if margin.gradient == "straight_through":
        slope = plain
    return phi - m3, slope


def turn(cosines: Tensor, alpha: Tensor, clips: bool = True) -> tuple[Tensor, Tensor]:
    """Cosines of angles turned by their cloud: ``cos(clip(theta + alpha, 0, pi))`` without an arc cosine.

    ``cos(theta + alpha) = t cos(alpha) - sqrt(1 - t**2) sin(alpha)`` with t = cos(theta); the sum of angles leaves
    0..pi where alpha < 0 and t > cos(alpha), or alpha > 0 and t < -cos(alpha).

    Args:
        cosines: t, any shape.
        alpha: radians, of a shape that broadcasts to it, within -pi..pi.
        clips: whether an angle may leave 0..pi; False where the caller knows that none does.

    Returns:
        (the cosines, their derivatives by t, 0 where clipped), of the same shape.
    """
    cosine, sine = torch.cos(alpha), torch.sin(alpha)
    square = torch.addcmul(cosines.new_ones(()), cosines, cosines, value=-1).clamp_min_(_SMALLEST_SINE**2)
    inverse = torch.rsqrt(square)  # 1 / sin(theta)
    turned = cosines * cosine - square.mul_(inverse).mul_(sine)
    slope = torch.addcmul(cosine, inverse.mul_(sine), cosines)
    if clips:
        low, high = (alpha < 0) & (cosines > cosine), (alpha > 0) & (cosines < -cosine)
        turned.masked_fill_(low, 1.0).masked_fill_(high, -1.0)
        slope.masked_fill_(low | high, 0.0)
    return turned, slope
