"""The fused kernels against plain PyTorch: in Triton's interpreter on a CPU, compiled on a GPU."""

import importlib.util
import os

import numpy as np
import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: the kernels have nothing to run in", allow_module_level=True)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported

from facetrain.classifier import softmax
from facetrain.classifier.blocks import Blocks, SoftmaxSpec, Update
from facetrain.classifier.clouds import Cloud, normal_table, places
from facetrain.classifier.columns import Columns, Targets, Turned
from facetrain.classifier.gpu_blocks import GpuBlocks
from facetrain.classifier.rows import RowOptimizer
from facetrain.classifier.sampling import Sample, compacted, draw, sample_classes
from facetrain.classifier.softmax import sharded_cross_entropy
from facetrain.config import OptimConfig
from facetrain.config_loss import MarginConfig
from facetrain.distributed import World

WHERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
G, D = 10, 20
# Triton's interpreter cuts bfloat16 off instead of rounding it.
ERROR = {"fp32": 3e-6, "bf16": 2e-3 if WHERE.type == "cuda" else 2e-2}
MARGIN = MarginConfig(kind="arcface", gradient="exact", scale=16)


def _case(classes, sampled, clouds=None):
    """Embeddings, columns, targets and clouds; row 3's class is another rank's."""
    generator = torch.Generator().manual_seed(classes)
    x = torch.nn.functional.normalize(torch.randn(G, D, generator=generator)).to(WHERE)
    table = torch.randn(classes, D, generator=generator).mul_(0.3).to(WHERE)
    draw_ = np.random.default_rng(0)
    taken = np.sort(draw_.choice(classes, classes // 2, replace=False)) if sampled else np.arange(classes)
    rows = torch.from_numpy(taken).to(WHERE) if sampled else None
    columns = draw_.integers(0, len(taken), G)
    columns[[3, 5]] = -1, columns[4]
    turned = None
    if clouds:
        with_cloud = np.arange(7)
        std = torch.linspace(0.05, 2.0, 7).to(WHERE)
        start = torch.from_numpy(places(0, 1, with_cloud)).to(WHERE)
        cloud = Cloud(with_cloud, std, start, normal_table(0, torch.float32, WHERE, 600), clouds == "per_class")
        angles = torch.zeros(G, dtype=torch.float64, device=WHERE)
        numbers = torch.from_numpy(taken[columns[:7]]).to(WHERE)
        angles[:7] = cloud.target_alpha(numbers + 100).double()
        turned = Turned(cloud, rows + 100 if rows is not None else range(100, 100 + classes), angles)
    return x, Columns(table, rows), Targets.known(columns, WHERE), turned


def _loss(monkeypatch, made, precision, chunk, keep, sampled, clouds, optim):
    """The loss, the embeddings' gradient, the table and the optimiser's state after an update by ``made``."""
    monkeypatch.setattr(softmax, "blocks_for", made)
    x, columns, targets, turned = _case(300, sampled, clouds)
    x.requires_grad_()
    spec = SoftmaxSpec(MARGIN, chunk, keep, World(device=WHERE), precision)
    optimizer = RowOptimizer(columns.table, optim)
    generator = torch.Generator().manual_seed(9)
    for held in optimizer.state.values():
        held.copy_(torch.rand(held.shape, generator=generator))
    loss = sharded_cross_entropy(x, columns, targets, spec, turned, Update(optimizer, 0.1))
    (loss / 3).backward()
    return [loss.detach(), x.grad, columns.table, *optimizer.state.values()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("clouds", [None, "per_class", "per_sample"])
@pytest.mark.parametrize(("chunk", "keep"), [(70, np.inf), (100, 0), (1000, 4000.0)])
def test_losses_gradients_and_updates_are_the_plain_ones(monkeypatch, precision, sampled, clouds, chunk, keep):
    optim = OptimConfig(weight_decay=0.01)
    plain, fused = (
        _loss(monkeypatch, made, precision, chunk, keep, sampled, clouds, optim) for made in (Blocks, GpuBlocks)
    )
    for a, b in zip(plain, fused, strict=True):
        assert torch.isfinite(b).all()
        assert (a - b).norm() <= ERROR[precision] * a.norm()


def test_adamw_takes_the_plain_update(monkeypatch):
    optim = OptimConfig(name="adamw", weight_decay=0.01)
    plain, fused = (_loss(monkeypatch, made, "fp32", 100, 0, True, None, optim) for made in (Blocks, GpuBlocks))
    for a, b in zip(plain, fused, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampled", [False, True])
def test_the_gradient_of_the_weights_is_the_plain_one(monkeypatch, sampled):
    found = []
    for made in (Blocks, GpuBlocks):
        monkeypatch.setattr(softmax, "blocks_for", made)
        x, columns, targets, _ = _case(130, sampled)
        weights = columns.table[columns.where(0, len(columns))].clone().requires_grad_()
        spec = SoftmaxSpec(MARGIN, 50, np.inf, World(device=WHERE))
        sharded_cross_entropy(x, weights, targets, spec).backward()
        found.append(weights.grad)
    assert (found[0] - found[1]).norm() <= 3e-6 * found[0].norm()


def test_bfloat16_is_near_float32(monkeypatch):
    """Rounded factors, not rounded sums: a few parts in a thousand."""
    optim = OptimConfig(weight_decay=0.0)
    single, half = (_loss(monkeypatch, Blocks, precision, 100, 0, False, None, optim) for precision in ("fp32", "bf16"))
    for a, b in zip(single, half, strict=True):
        assert 0 < (a - b).norm() <= 1e-2 * a.norm()


def test_draws_are_those_of_the_host():
    for classes in (range(0, 3000), range(5000, 5001), range(2**33, 2**33 + 100)):
        taken = torch.zeros(len(classes), dtype=torch.uint8, device=WHERE)
        draw(taken, classes, 0.3, 7, 11)
        expected = sample_classes(classes, np.empty(0, np.int64), 0.3, 7, 11)
        assert np.array_equal(np.flatnonzero(taken.cpu().numpy()), expected)


@pytest.mark.parametrize("classes", [1, 1024, 3000])
def test_a_sample_is_put_in_order_as_the_host_does(classes):
    labels = np.random.default_rng(0).integers(0, classes, 20)
    rows = sample_classes(range(classes), labels, 0.3, 7, 11)
    taken = torch.zeros(classes, dtype=torch.uint8, device=WHERE)
    taken[torch.from_numpy(rows).to(WHERE)] = 1
    sample = compacted(taken, len(rows))
    assert np.array_equal(sample.rows.cpu().numpy(), rows)
    labels[[0, 4]] = -1  # other ranks' classes
    expected = Sample(torch.from_numpy(rows), rows).targets(labels)
    assert np.array_equal(sample.targets(labels).of_row.cpu().numpy(), expected.of_row.numpy())
    assert expected.of_row.tolist()[:1] == [-1]
