"""LEAP's reference loss (Eq. 7 and 8) against examples worked out by hand, finite differences and the plain loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from dense import dense_loss
from leap_reference import leap_loss
from torch import Tensor

from facetrain.config_loss import MarginConfig

MARGINS = [
    {"kind": "cosface"},
    {"kind": "arcface"},
    {"kind": "combined", "m1": 1.0, "m2": 0.3, "m3": 0.2},
    {"kind": "combined", "m1": 1.35},
    {"kind": "combined", "m1": 2.0, "m2": 0.4, "m3": 0.1},
]


def plane(*angles: float) -> Tensor:
    """Rows in the plane at these angles to (1, 0)."""
    rows = [[math.cos(angle), math.sin(angle)] for angle in angles]
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def row_loss(own: float, other: float, margin: MarginConfig, alpha: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """One row at angle ``own`` to its class and ``other`` to the other class: (loss, gradient of the row)."""
    x = plane(0.0)
    loss = leap_loss(x, plane(own, -other), [0], margin, torch.tensor([alpha], dtype=torch.float64))
    loss.backward()
    return loss.detach(), x.grad


def two_class_loss(own: float, other: float) -> float:
    """-log softmax of the logits 64 * own against 64 * other."""
    return math.log1p(math.exp(64 * (other - own)))


def test_cosface_and_arcface_with_a_cloud_as_printed():
    alpha = (0.2, -0.1)
    cosface, _ = row_loss(0.9, 1.1, MarginConfig(kind="cosface"), alpha)
    arcface, _ = row_loss(0.9, 1.1, MarginConfig(kind="arcface"), alpha)
    assert cosface.item() == pytest.approx(two_class_loss(math.cos(0.9 + 0.2) - 0.35, math.cos(1.1 - 0.1)))
    assert arcface.item() == pytest.approx(two_class_loss(math.cos(0.9 + 0.2 + 0.5), math.cos(1.1 - 0.1)))


@pytest.mark.parametrize(
    ("keys", "alpha", "target"),
    [
        ({"kind": "cosface"}, -1.0, 1 - 0.35),
        ({"kind": "arcface"}, -0.8, math.cos(0.6 - 0.8 + 0.5)),
        ({"kind": "arcface"}, -1.3, 1.0),
        ({"kind": "arcface"}, 2.2, math.cos(0.6 + 2.2) - 0.5 * math.sin(0.5)),
        ({"kind": "cosface"}, 2.6, -1 - 0.35),
        ({"kind": "arcface"}, 2.6, -1 - 0.5 * math.sin(0.5)),
        ({"kind": "combined", "m1": 2.0}, -1.0, 1.0),
        ({"kind": "combined", "m1": 2.0, "m2": 0.4, "m3": 0.1}, -0.7, math.cos(-2 * 0.1 + 0.4) - 0.1),
        ({"kind": "combined", "m1": 2.0, "m2": 0.4, "m3": 0.1}, 1.2, -math.cos(2 * 1.8 + 0.4) - 2 - 0.1),
        ({"kind": "combined", "m1": 2.0, "m2": 0.4, "m3": 0.1}, 2.6, math.cos(0.4) - 4 - 0.1),
    ],
    ids=str,
)
@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
def test_the_target_where_alpha_or_the_margin_leaves_0_to_pi(keys, alpha, target, gradient):
    loss, _ = row_loss(0.6, 1.1, MarginConfig(**keys, gradient=gradient), (alpha, 0.0))
    assert loss.item() == pytest.approx(two_class_loss(target, math.cos(1.1)), rel=1e-9)


@pytest.mark.parametrize(
    ("alpha", "value"), [(-1.5, 1.0), (-4.0, 1.0), (2.5, -1.0), (4.0, -1.0), (-0.2, math.cos(0.9))]
)
def test_the_other_logits_are_clipped_alike(alpha, value):
    loss, _ = row_loss(0.6, 1.1, MarginConfig(kind="cosface"), (0.0, alpha))
    assert loss.item() == pytest.approx(two_class_loss(math.cos(0.6) - 0.35, value), rel=1e-9)


@pytest.mark.parametrize("keys", MARGINS, ids=str)
@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
@pytest.mark.parametrize("alpha", [(-4.0, -4.0), (4.0, 4.0), (-4.0, 4.0), (4.0, -4.0)])
def test_where_everything_is_clipped_the_gradient_is_exactly_zero(keys, gradient, alpha):
    _, slope = row_loss(0.6, 1.1, MarginConfig(**keys, gradient=gradient), alpha)
    assert torch.equal(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("own", [2.8, 3.0])
def test_beyond_pi_minus_m_the_target_is_still_pulled(own):
    """Eq. 8's own clip would end the gradient here: the degenerate optimum with every angle at pi."""
    _, slope = row_loss(own, 1.1, MarginConfig(kind="arcface", gradient="exact"), (0.1, -4.0))
    assert slope.abs().max() > 1


def problem(seed: int = 0, rows: int = 5, classes: int = 6, size: int = 4) -> tuple[Tensor, Tensor, list[int], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, size, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(classes, size, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(classes, (rows,), generator=generator).tolist()
    return x, weights, labels, 0.3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("keys", MARGINS, ids=str)
@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
@pytest.mark.parametrize("sampled", [False, True])
def test_without_a_cloud_it_is_the_plain_loss(keys, gradient, sampled):
    margin, (x, weights, labels, alpha) = MarginConfig(**keys, gradient=gradient), problem()
    columns = sorted(set(labels)) if sampled else None
    ours = leap_loss(x, weights, labels, margin, torch.zeros_like(alpha), columns)
    plain = dense_loss(x, weights, labels, margin, columns)
    assert torch.equal(ours, plain)
    for a, b in zip(torch.autograd.grad(ours, (x, weights)), torch.autograd.grad(plain, (x, weights)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_column_finds_its_alpha_by_its_class():
    x, weights, labels, alpha = problem()
    columns, margin = sorted({*labels, 5}), MarginConfig(scale=8.0)
    own = [columns.index(label) for label in labels]
    expected = leap_loss(x, weights[columns], own, margin, alpha[:, columns])
    assert len(columns) < len(weights)
    assert torch.equal(leap_loss(x, weights, labels, margin, alpha, columns), expected)


@pytest.mark.parametrize("keys", MARGINS, ids=str)
@pytest.mark.parametrize("size", [0.3, -0.3, 1.5, -1.5])
def test_the_exact_gradient_agrees_with_finite_differences(keys, size):
    """All alpha of one sign; with the larger ones many logits are clipped, at pi or at 0."""
    margin, (x, weights, labels, noise) = MarginConfig(**keys, scale=8.0, gradient="exact"), problem()
    alpha = size * (1 + noise.abs())
    angles = torch.arccos(F.normalize(x) @ F.normalize(weights).T) + alpha
    clipped = int(((angles < 0) | (angles > math.pi)).sum())
    assert (clipped > 5) == (abs(size) > 1)
    assert clipped < angles.numel()
    assert torch.autograd.gradcheck(lambda x, w: leap_loss(x, w, labels, margin, alpha), (x, weights))


@pytest.mark.parametrize("keys", MARGINS, ids=str)
@pytest.mark.parametrize("alpha", [0.3, -0.3, -0.7, -1.5, 2.3, 2.7])
def test_straight_through_has_the_gradient_of_the_cosine_margin_of_the_same_value(keys, alpha):
    """For one row the margin's value is that of some constant m3, whose gradient is the plain shifted cosine's."""
    margin = MarginConfig(**keys, scale=2.0)
    loss, slope = row_loss(0.6, 1.1, margin, (alpha, 0.2))
    plain = math.cos(min(max(0.6 + alpha, 0.0), math.pi))
    other = math.cos(1.1 + 0.2)
    value = other - math.log(math.expm1(loss.item())) / 2
    # d loss / d x = -scale * (1 - p) * (d plain / d x - d other / d x), and (1, 0) turns towards the class at 0.6.
    share = 1 / (1 + math.exp(2 * (value - other)))
    d_plain = math.sin(0.6 + alpha) if 0 < 0.6 + alpha < math.pi else 0.0
    d_other = -math.sin(1.1 + 0.2)
    assert value <= plain + 1e-12
    assert slope[0].tolist() == pytest.approx([0.0, -2 * share * (d_plain - d_other)], abs=1e-9)
