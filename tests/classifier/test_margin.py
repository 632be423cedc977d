import math

import pytest
import torch
from dense import target_value

from facetrain.classifier.margin import apply_margin
from facetrain.config_loss import MarginConfig

MARGINS = [
    {"kind": "cosface"},
    {"kind": "cosface", "m": 0.0},
    {"kind": "arcface"},
    {"kind": "arcface", "m": 1.2},
    {"kind": "combined", "m1": 1.0, "m2": 0.3, "m3": 0.2},
    {"kind": "combined", "m1": 1.35},
    {"kind": "combined", "m1": 4.0},
    {"kind": "combined", "m1": 2.0, "m2": 0.4, "m3": 0.1},
]


@pytest.mark.parametrize("keys", MARGINS, ids=str)
def test_value_and_exact_gradient_are_those_of_the_definition(keys):
    margin = MarginConfig(**keys, gradient="exact")
    cosines = torch.cos(torch.linspace(0.01, math.pi - 0.01, 400, dtype=torch.float64))
    phi, slope = apply_margin(cosines, margin)
    for cosine, value, gradient in zip(cosines, phi, slope, strict=True):
        leaf = cosine.clone().requires_grad_()
        expected = target_value(torch.arccos(leaf), margin)
        expected.backward()
        torch.testing.assert_close(value, expected.detach(), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("keys", MARGINS, ids=str)
def test_a_larger_angle_never_gives_a_larger_value(keys):
    theta = torch.linspace(0, math.pi, 4001, dtype=torch.float64)
    phi, _ = apply_margin(torch.cos(theta), MarginConfig(**keys))
    assert (phi.diff() <= 1e-12).all()


@pytest.mark.parametrize("keys", MARGINS, ids=str)
@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
def test_the_ends_and_rounding_beyond_them_stay_finite(keys, gradient):
    cosines = torch.tensor([-1.0000001, -1.0, 1.0, 1.0000001])
    phi, slope = apply_margin(cosines, MarginConfig(**keys, gradient=gradient))
    assert phi.isfinite().all()
    assert slope.isfinite().all()


def test_straight_through_keeps_the_value_and_takes_the_gradient_of_the_cosine():
    cosines = torch.linspace(-0.99, 0.99, 50, dtype=torch.float64)
    exact, _ = apply_margin(cosines, MarginConfig(kind="arcface", gradient="exact"))
    phi, slope = apply_margin(cosines, MarginConfig(kind="arcface", gradient="straight_through"))
    assert torch.equal(phi, exact)
    assert torch.equal(slope, torch.ones_like(slope))
