"""One, two and three ranks make the same updates: the project's central promise, in float64."""

import itertools

import numpy as np
import pytest
import torch
from dense import dense_loss
from ranks import run_ranks
from torch import nn

from facetrain.classifier.partial_fc import PartialFC, sample_classes
from facetrain.config import Config
from facetrain.data.loader import Batch
from facetrain.distributed import World
from facetrain.keyed import bits
from facetrain.models import normalise
from facetrain.train import TrainState, train_step

STEPS, GLOBAL, SIDE, D = 20, 10, 4, 6


def _config(kind, rate, accumulation, optim="sgd", clip=None):
    return Config.model_validate(
        {
            "output": "unused",
            "data": {"path": "unused"},
            "model": {"embedding_size": D},
            "classifier": {"margin": {"kind": kind, "gradient": "exact", "scale": 16}, "sample_rate": rate, "chunk": 3},
            "optim": {"name": optim, "weight_decay": 0.01, "clip_norm": clip},
            "train": {"batch_size": GLOBAL * accumulation, "accumulation": accumulation},
        }
    )


class Toy(nn.Module):
    """A backbone without batch norm, so that rows do not influence each other."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(3 * SIDE * SIDE, 16, generator=generator, dtype=torch.float64) / 7)
        self.second = nn.Parameter(torch.randn(16, D, generator=generator, dtype=torch.float64) / 4)

    def forward(self, images):
        return torch.tanh(images.flatten(1).double() @ self.first) @ self.second


def _micro_batches(step, accumulation, classes):
    """The global images (G, H, W, 3) and labels of each micro-batch of an update."""
    for micro in range(accumulation):
        number = step * accumulation + micro
        images = (bits(1, number, np.arange(GLOBAL * SIDE * SIDE * 3)) % 256).astype(np.uint8)
        labels = (bits(2, number, np.arange(GLOBAL)) % classes).astype(np.int64)
        yield images.reshape(GLOBAL, SIDE, SIDE, 3), labels


def _train(world, config, classes):
    """20 updates: the losses; then the backbone's last gradients, the classifier's, and both their weights."""
    backbone = Toy()
    classifier = PartialFC(classes, D, config.classifier, config.optim, world, 0, torch.float64)
    make = torch.optim.SGD if config.optim.name == "sgd" else torch.optim.AdamW
    keys = {"momentum": config.optim.momentum} if config.optim.name == "sgd" else {}
    optimizer = make(backbone.parameters(), 0.1, weight_decay=config.optim.weight_decay, **keys)
    state = TrainState(config, world, backbone, world.data_parallel(backbone), optimizer, classifier)
    losses, classifier_grad = [], None

    def keep_gradient(lr, step=classifier.step):
        nonlocal classifier_grad
        classifier_grad = classifier.rows.grad.clone()
        step(lr)

    classifier.step = keep_gradient
    for step in range(STEPS):
        own = world.rows_of(GLOBAL)
        batches = [
            Batch(torch.from_numpy(images[own.start : own.stop]), labels)
            for images, labels in _micro_batches(step, config.train.accumulation, classes)
        ]
        losses.append(train_step(state, batches, 0.1).item())
    backbone_grads = [parameter.grad.clone() for parameter in backbone.parameters()]
    weights = [parameter.detach() for parameter in backbone.parameters()]
    tensors = [*backbone_grads, classifier_grad, *weights, classifier.weight.detach()]
    return losses, [tensor.numpy() for tensor in tensors]


def _assembled(results):
    """What the ranks must agree on, and their shards put together."""
    losses, tensors = results[0]
    for other, others in results[1:]:
        assert other == losses
        for a, b in zip(tensors[:2] + tensors[3:5], others[:2] + others[3:5], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-15)
    shards = [np.concatenate([tensors[i] for _, tensors in results]) for i in (2, 5)]
    return [np.array(losses), *tensors[:2], *tensors[3:5], *shards]


CASES = [
    *itertools.product(["cosface", "arcface"], [1.0, 0.4], [1, 2], [7], ["sgd"], [None]),
    ("cosface", 1.0, 1, 2, "sgd", None),  # more ranks than classes
    ("arcface", 0.2, 3, 31, "adamw", 0.5),
    ("cosface", 0.5, 1, 13, "sgd", 0.05),
]


def _compare_all(world_size):
    """All cases on one set of processes: starting them is the slow part."""
    return run_ranks(world_size, _all_cases)


def _all_cases(world):
    return [_train(world, _config(k, r, a, o, clip), classes) for k, r, a, classes, o, clip in CASES]


@pytest.fixture(scope="module")
def alone():
    return _compare_all(1)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_equal_one_process(size, alone):
    results = _compare_all(size)
    for number, case in enumerate(CASES):
        expected = _assembled([alone[0][number]])
        found = _assembled([rank[number] for rank in results])
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-10, err_msg=f"{size} ranks, {case}")


@pytest.mark.parametrize(("kind", "rate", "accumulation"), [("cosface", 1.0, 1), ("arcface", 0.4, 2)])
def test_one_process_equals_the_dense_reference(kind, rate, accumulation):
    """The same 20 updates with plain tensors, autograd and torch.optim; accumulation as one large batch."""
    classes, config = 7, _config(kind, rate, accumulation)
    backbone = Toy()
    start = PartialFC(classes, D, config.classifier, config.optim, World(), 0, torch.float64)
    weight = start.weight.detach().clone()
    momentum = torch.zeros_like(weight)
    optimizer = torch.optim.SGD(backbone.parameters(), 0.1, 0.9, weight_decay=0.01)
    losses = []
    for step in range(STEPS):
        images, labels = (np.concatenate(x) for x in zip(*_micro_batches(step, accumulation, classes), strict=True))
        columns = range(classes) if rate == 1 else sample_classes(range(classes), labels, rate, 0, step)
        weight.requires_grad_().grad = None
        optimizer.zero_grad()
        embeddings = backbone(normalise(torch.from_numpy(images)))
        loss = dense_loss(embeddings, weight, labels.tolist(), config.classifier.margin, columns)
        loss.backward()
        optimizer.step()
        rows = list(columns)
        with torch.no_grad():
            momentum[rows] = 0.9 * momentum[rows] + weight.grad[rows] + 0.01 * weight[rows]
            weight = weight.detach().clone()
            weight[rows] -= 0.1 * momentum[rows]
        losses.append(loss.item())
    found, tensors = _train(World(), config, classes)
    np.testing.assert_allclose(found, losses, rtol=1e-10)
    np.testing.assert_allclose(tensors[5], weight.numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(tensors[4], backbone.second.detach().numpy(), rtol=1e-10, atol=1e-12)
