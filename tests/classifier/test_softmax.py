import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense import dense_loss

from facetrain.classifier.blocks import SoftmaxSpec
from facetrain.classifier.columns import Targets
from facetrain.classifier.softmax import sharded_cross_entropy
from facetrain.config_loss import MarginConfig
from facetrain.distributed import World

CPU = torch.device("cpu")
MARGINS = [
    MarginConfig(),
    MarginConfig(kind="arcface", gradient="exact"),
    MarginConfig(kind="arcface", gradient="straight_through"),
    MarginConfig(kind="combined", m1=1.5, m2=0.2, m3=0.1, gradient="exact", scale=20),
    MarginConfig(scale=128.0),
]


def _inputs(rows=6, classes=11, size=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, size, generator=generator, dtype=dtype, requires_grad=True)
    weights = torch.randn(classes, size, generator=generator, dtype=dtype, requires_grad=True)
    labels = np.array([0, 10, 3, 3, 7, 2])[:rows]
    return x, weights, labels


def _loss(x, weights, labels, margin, chunk=4, keep=True):
    spec = SoftmaxSpec(margin, chunk, np.inf if keep else 0, World())
    return sharded_cross_entropy(F.normalize(x), weights, Targets.known(labels, CPU), spec)


@pytest.mark.parametrize("margin", MARGINS, ids=str)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_loss_and_gradients_equal_the_dense_reference(margin, keep, chunk):
    x, weights, labels = _inputs()
    expected = dense_loss(x, weights, labels.tolist(), margin)
    grads = torch.autograd.grad(expected, (x, weights))
    loss = _loss(x, weights, labels, margin, chunk, keep)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, (x, weights)), grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_gradcheck(keep, kind):
    x, weights, labels = _inputs(rows=4, classes=11, size=3)
    margin = MarginConfig(kind=kind, gradient="exact", scale=8)
    assert torch.autograd.gradcheck(lambda a, b: _loss(a, b, labels, margin, 4, keep), (x, weights))


def test_the_gradient_scales_with_what_stands_above_it():
    x, weights, labels = _inputs()
    plain = torch.autograd.grad(_loss(x, weights, labels, MARGINS[0]), (x, weights))
    third = torch.autograd.grad(_loss(x, weights, labels, MARGINS[0]) / 3, (x, weights))
    for a, b in zip(plain, third, strict=True):
        torch.testing.assert_close(a / 3, b)


def test_a_learnt_class_keeps_its_small_loss_in_float32():
    """The target's exponential is e^40 times the others': a float32 sum that held it would have lost them."""
    size = 64
    weights = torch.eye(size)
    x = F.normalize(torch.eye(size) + 0.02 * torch.randn(size, size, generator=torch.Generator().manual_seed(0)))
    labels, margin = np.arange(size), MarginConfig(m=0.35)
    single = _loss(x, weights, labels, margin, 16)
    double = dense_loss(x.double(), weights.double(), labels.tolist(), margin)
    assert 0 < double < 1e-6
    torch.testing.assert_close(single, double, rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [1.0, 64.0, 100.0, 128.0])
def test_extreme_scales_stay_finite_in_float32(scale):
    for sign in (1, -1):
        weights = torch.eye(8).requires_grad_()
        x = (sign * torch.eye(8)).requires_grad_()
        loss = _loss(x, weights, np.arange(8), MarginConfig(scale=scale, m=0.35))
        loss.backward()
        assert loss.isfinite()
        assert x.grad.isfinite().all()
        assert weights.grad.isfinite().all()


def test_one_class_has_no_loss_and_no_gradient():
    x, weights = torch.randn(3, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    loss = _loss(x, weights, np.zeros(3, int), MarginConfig())
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    assert not weights.grad.any()


def test_float32_is_as_near_to_float64_as_float32_allows():
    generator = torch.Generator().manual_seed(2)
    x, weights = torch.randn(64, 128, generator=generator), torch.randn(5000, 128, generator=generator)
    labels = np.arange(64) * 70
    results = []
    for dtype in (torch.float32, torch.float64):
        a, b = x.detach().to(dtype, copy=True).requires_grad_(), weights.detach().to(dtype, copy=True).requires_grad_()
        loss = _loss(a, b, labels, MarginConfig(), 512)
        loss.backward()
        results.append((loss, a.grad.double(), b.grad.double()))
    for single, double in zip(*results, strict=True):
        assert (single - double).norm() <= 2e-6 * double.norm()
