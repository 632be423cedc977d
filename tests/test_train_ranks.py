"""One, two and three ranks make the same updates: the project's central promise, in float64."""

import itertools

import numpy as np
import pytest
import torch
from dense import dense_loss
from leap_reference import Reference, leap_loss
from ranks import run_ranks
from torch import nn

from facetrain.classifier.clouds import TABLE, normal_table, places
from facetrain.classifier.partial_fc import PartialFC
from facetrain.classifier.sampling import sample_classes
from facetrain.config import Config
from facetrain.data.loader import Batch
from facetrain.distributed import World
from facetrain.keyed import bits
from facetrain.longtail.leap import Leap
from facetrain.models import normalise
from facetrain.train import TrainState, train_step

STEPS, GLOBAL, SIDE, D = 20, 10, 4, 6


def _config(kind, rate, accumulation, optim="sgd", clip=None, leap=None):
    return Config.model_validate(
        {
            "output": "unused",
            "data": {"path": "unused"},
            "model": {"embedding_size": D},
            "classifier": {"margin": {"kind": kind, "gradient": "exact", "scale": 16}, "sample_rate": rate, "chunk": 3},
            "optim": {"name": optim, "weight_decay": 0.01, "clip_norm": clip},
            "leap": {"start_epoch": 0, "sync_interval": 3} | leap if leap else {},
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
    """20 updates: the losses; backbone's last gradients, classifier's momentum, weights of both, LEAP's centres."""
    backbone = Toy()
    classifier = PartialFC(classes, D, config.classifier, config.optim, world, 0, torch.float64)
    make = torch.optim.SGD if config.optim.name == "sgd" else torch.optim.AdamW
    keys = {"momentum": config.optim.momentum} if config.optim.name == "sgd" else {}
    optimizer = make(backbone.parameters(), 0.1, weight_decay=config.optim.weight_decay, **keys)
    leap = Leap(config.leap, 2 + np.arange(classes) % 5, D, world, 0, 0, config.classifier.chunk, torch.float64)
    state = TrainState(config, world, backbone, world.data_parallel(backbone), optimizer, classifier, leap)
    losses = []
    for step in range(STEPS):
        own = world.rows_of(GLOBAL)
        batches = [
            Batch(torch.from_numpy(images[own.start : own.stop]), labels)
            for images, labels in _micro_batches(step, config.train.accumulation, classes)
        ]
        losses.append(train_step(state, batches, 0.1).loss.item())
    backbone_grads = [parameter.grad.clone() for parameter in backbone.parameters()]
    weights = [parameter.detach() for parameter in backbone.parameters()]
    centres = leap.centers.value if leap.active else torch.zeros(len(classifier.classes), D)
    momentum = next(iter(classifier.optimizer.state.values()))
    tensors = [*backbone_grads, momentum, *weights, classifier.weight.detach(), centres]
    return losses, [tensor.numpy() for tensor in tensors]


def _assembled(results):
    """What the ranks must agree on, and their shards put together."""
    losses, tensors = results[0]
    for other, others in results[1:]:
        assert other == losses
        for a, b in zip(tensors[:2] + tensors[3:5], others[:2] + others[3:5], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-15)
    shards = [np.concatenate([tensors[i] for _, tensors in results]) for i in (2, 5, 6)]
    return [np.array(losses), *tensors[:2], *tensors[3:5], *shards]


VANILLA, FULL = {"variant": "vanilla", "head_threshold": 4}, {"variant": "full", "cloud_noise": "per_sample"}
CASES = [
    *itertools.product(["cosface", "arcface"], [1.0, 0.4], [1, 2], [7], ["sgd"], [None], [None]),
    ("cosface", 1.0, 1, 2, "sgd", None, None),  # more ranks than classes
    ("arcface", 0.2, 3, 31, "adamw", 0.5, None),
    ("cosface", 0.5, 1, 13, "sgd", 0.05, None),
    ("cosface", 1.0, 1, 13, "sgd", None, VANILLA),
    ("arcface", 0.4, 2, 13, "sgd", None, VANILLA | {"angle_against": "updated"}),
    ("arcface", 1.0, 1, 2, "sgd", None, FULL),
    ("cosface", 0.4, 1, 7, "adamw", 0.5, FULL | {"cloud_for": "everyone", "memory_factor": 2}),
]


def _compare_all(world_size):
    """All cases on one set of processes: starting them is the slow part."""
    return run_ranks(world_size, _all_cases)


def _all_cases(world):
    return [_train(world, _config(k, r, a, o, clip, leap), classes) for k, r, a, classes, o, clip, leap in CASES]


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


@pytest.mark.parametrize(
    ("kind", "rate", "accumulation", "leap"),
    [("cosface", 1.0, 1, None), ("arcface", 0.4, 2, None), ("cosface", 1.0, 1, VANILLA), ("arcface", 0.4, 2, FULL)],
)
def test_one_process_equals_the_dense_reference(kind, rate, accumulation, leap):
    """The same 20 updates with plain tensors, autograd and torch.optim; accumulation as one large batch."""
    classes, config = 7, _config(kind, rate, accumulation, leap=leap)
    counts = (2 + np.arange(classes) % 5).tolist()
    memory = Reference(counts, variant="full", head_threshold=4, sync_interval=3)
    memory.variant = leap["variant"] if leap else "off"
    backbone = Toy()
    start = PartialFC(classes, D, config.classifier, config.optim, World(), 0, torch.float64)
    weight = start.weight.detach().clone()
    momentum = torch.zeros_like(weight)
    optimizer = torch.optim.SGD(backbone.parameters(), 0.1, 0.9, weight_decay=0.01)
    losses, clouds = [], 0
    for step in range(STEPS):
        images, labels = (np.concatenate(x) for x in zip(*_micro_batches(step, accumulation, classes), strict=True))
        columns = range(classes) if rate == 1 else sample_classes(range(classes), labels, rate, 0, step)
        weight.requires_grad_().grad = None
        optimizer.zero_grad()
        embeddings = backbone(normalise(torch.from_numpy(images)))
        if leap:
            alpha = _alpha(memory, config, labels, classes, step)
            clouds += int((alpha != 0).any(1).sum())
            loss = leap_loss(embeddings, weight, labels.tolist(), config.classifier.margin, alpha, columns)
            memory.observe(embeddings.detach().numpy(), labels.tolist())
            memory.end_step()
        else:
            loss = dense_loss(embeddings, weight, labels.tolist(), config.classifier.margin, columns)
        loss.backward()
        optimizer.step()
        rows = list(columns)
        with torch.no_grad():
            momentum[rows] = 0.9 * momentum[rows] + weight.grad[rows] + 0.01 * weight[rows]
            weight = weight.detach().clone()
            weight[rows] -= 0.1 * momentum[rows]
        losses.append(loss.item())
    assert (clouds > 20) == bool(leap)
    found, tensors = _train(World(), config, classes)
    np.testing.assert_allclose(found, losses, rtol=1e-10)
    np.testing.assert_allclose(tensors[5], weight.numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(tensors[4], backbone.second.detach().numpy(), rtol=1e-10, atol=1e-12)


def _alpha(memory, config, labels, classes, step):
    """The dense (G, C) angles that the clouds of an update have, row by row from the reference's spreads."""
    table = normal_table(0, torch.float64, torch.device("cpu"), 1)
    alpha = torch.zeros((len(labels), classes), dtype=torch.float64)
    for row, label in enumerate(labels):
        place = int(places(0, step, row))
        drawn = [table[(place + j * (config.leap.cloud_noise == "per_class")) % TABLE] for j in range(classes)]
        alpha[row] = memory.cloud_std(int(label)) * torch.stack(drawn)
    return alpha
