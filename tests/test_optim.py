import math

import pytest
import torch

from facetrain.config import ScheduleConfig
from facetrain.distributed import World
from facetrain.optim import clip_gradients, gradient_norm, learning_rate


def _curve(total=300, per_epoch=10, peak=0.1, **keys):
    config = ScheduleConfig(**keys)
    return torch.tensor([learning_rate(step, total, per_epoch, peak, config) for step in range(total)])


def test_triangular_rises_and_falls_once_in_each_cycle():
    curve = _curve(name="triangular", cycles=3, min_lr=0.01)
    assert torch.allclose(curve[:100], curve[100:200], atol=1e-6)
    assert torch.allclose(curve[:100], curve[:100].flip(0), atol=1e-6)
    assert curve.argmax() in (49, 50, 149, 150, 249, 250)
    assert (curve[:50].diff() > 0).all()
    assert 0.01 < curve.min() < 0.012
    assert 0.098 < curve.max() <= 0.1


@pytest.mark.parametrize("name", ["polynomial", "cosine"])
def test_warm_up_is_linear_and_the_rest_falls_to_the_minimum(name):
    curve = _curve(name=name, warmup_epochs=2, min_lr=0.001)
    assert torch.allclose(curve[:20], 0.1 * torch.arange(1, 21) / 20)
    assert (curve[20:].diff() < 0).all()
    assert curve[-1] < 0.0011


def test_known_points():
    assert learning_rate(150, 300, 10, 0.4, ScheduleConfig(name="polynomial")) == pytest.approx(0.1)
    assert learning_rate(150, 300, 10, 0.4, ScheduleConfig(name="cosine")) == pytest.approx(0.2)
    assert learning_rate(100, 300, 10, 0.4, ScheduleConfig()) == pytest.approx(0.4 * 0.5 * (1 + math.cos(math.pi / 3)))


@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_clipping_bounds_the_norm_over_everything_given(largest):
    own, shard = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))
    own.grad, shard.grad = torch.tensor([3.0, 0, 4.0]), torch.full((2, 2), 6.0)
    clip_gradients([own, shard], largest, gradient_norm([own], [shard], World()))
    norm = math.hypot(own.grad.norm(), shard.grad.norm())
    assert norm == pytest.approx(min(largest, 13.0), rel=1e-5)
    assert own.grad[0] / own.grad[2] == pytest.approx(0.75)


def test_clipping_the_backbone_leaves_the_classifier():
    own, shard = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    own.grad, shard.grad = torch.tensor([4.0]), torch.tensor([100.0])
    clip_gradients([own], 2.0, gradient_norm([own], [], World()))
    assert own.grad.item() == pytest.approx(2.0, rel=1e-5)
    assert shard.grad.item() == 100
