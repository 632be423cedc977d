import numpy as np
import pytest
import torch

from facetrain.classifier.blocks import Scratch
from facetrain.classifier.partial_fc import PartialFC, initial_weights
from facetrain.classifier.sampling import sample_classes
from facetrain.config import OptimConfig
from facetrain.config_loss import ClassifierConfig, MarginConfig
from facetrain.distributed import World
from facetrain.partition import split


def test_initial_weights_do_not_depend_on_how_classes_are_cut():
    whole = initial_weights(range(2500), 8, seed=5)
    for parts in (2, 3, 7):
        assert torch.equal(whole, torch.cat([initial_weights(split(2500, parts, r), 8, 5) for r in range(parts)]))
    assert abs(whole.std().item() - 0.01) < 2e-4
    assert len(whole.unique(dim=0)) == 2500
    assert not torch.equal(whole, initial_weights(range(2500), 8, seed=6))


def test_the_sample_holds_all_positives_about_the_rate_and_is_the_same_for_any_cut():
    labels = np.array([3, 999, 3, 500])
    whole = sample_classes(range(1000), labels, 0.2, seed=1, step=9)
    assert {3, 500, 999} <= set(whole)
    assert 150 < len(whole) < 250
    parts = [split(1000, 3, rank) for rank in range(3)]
    pieces = [sample_classes(part, labels, 0.2, seed=1, step=9) + part.start for part in parts]
    assert np.array_equal(whole, np.concatenate(pieces))
    assert not np.array_equal(whole, sample_classes(range(1000), labels, 0.2, seed=1, step=10))


def test_negatives_are_drawn_evenly_over_steps():
    drawn = np.zeros(200)
    for step in range(400):
        drawn[sample_classes(range(200), np.array([], int), 0.3, seed=0, step=step)] += 1
    assert abs(drawn.mean() / 400 - 0.3) < 0.01
    assert drawn.min() > 80
    assert drawn.max() < 160


def test_rows_that_were_not_drawn_do_not_move():
    config = ClassifierConfig(sample_rate=0.3)
    classifier = PartialFC(50, 4, config, OptimConfig(weight_decay=0.1), World(), 0)
    before = classifier.weight.detach().clone()
    labels = np.array([1, 2, 40])
    classifier.begin(labels, 0)
    classifier.loss(torch.randn(3, 4), labels).backward()
    classifier.step(0.5)
    moved = (classifier.weight.detach() != before).any(dim=1).numpy()
    assert np.array_equal(np.flatnonzero(moved), sample_classes(range(50), labels, 0.3, 0, 0))


OPTIMS = [OptimConfig(weight_decay=0.1), OptimConfig(name="adamw", weight_decay=0.1)]
C, G, D = 53, 6, 4


def _updates(config, optim, at_once, dtype=torch.float64, steps=3):
    """Losses, gradients of the embeddings, then weights and the optimiser's state of some updates."""
    classifier = PartialFC(C, D, config, optim, World(), 0, dtype)
    found = []
    for step in range(steps):
        x = torch.randn(G, D, generator=torch.Generator().manual_seed(step), dtype=dtype).requires_grad_()
        labels = np.array([0, 52, 3, 3, 17, step])
        classifier.begin(labels, step, 0.5 if at_once else None)
        loss = classifier.loss(x, labels) / 2
        loss.backward()
        assert (classifier.rows.grad is None) == at_once
        assert classifier.weight.grad is None or (not at_once and config.sample_rate == 1)
        classifier.step(0.5)
        found += [loss.detach(), x.grad]
    return [*found, classifier.weight.detach(), *classifier.optimizer.state.values()]


@pytest.mark.parametrize("optim", OPTIMS, ids=lambda o: o.name)
@pytest.mark.parametrize("rate", [1.0, 0.4])
@pytest.mark.parametrize("keep_gb", [0.0, 1.2e-6, 4.0])  # none of the exponentials, those of some blocks, all
@pytest.mark.parametrize("chunk", [1, 10, 100])
def test_updating_in_the_backward_pass_is_updating_after_it(optim, rate, keep_gb, chunk):
    config = ClassifierConfig(sample_rate=rate, keep_gb=keep_gb, chunk=chunk)
    for a, b in zip(_updates(config, optim, False), _updates(config, optim, True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("at_once", [False, True])
def test_bfloat16_products_stay_near_float32(at_once):
    """Factors have 8 bits, sums 24: with a small scale, which multiplies errors of cosines, parts in a thousand."""
    margin = MarginConfig(scale=4)
    single, half = (
        _updates(
            ClassifierConfig(margin=margin, precision=precision, chunk=20), OPTIMS[0], at_once, torch.float32, steps=1
        )
        for precision in ("fp32", "bf16")
    )
    for a, b in zip(single, half, strict=True):
        assert 0 < (a - b).norm() < 0.01 * a.norm()


def test_exponentials_that_do_not_fit_the_budget_are_not_kept():
    sizes = {}
    for keep_gb in (0.0, 1.2e-6, 4.0):
        classifier = PartialFC(C, D, ClassifierConfig(keep_gb=keep_gb, chunk=10), OPTIMS[0], World(), 0, torch.float64)
        loss = classifier.loss(torch.randn(G, D, dtype=torch.float64, requires_grad=True), np.arange(G))
        sizes[keep_gb] = sum(exps.numel() * 8 for exps, _ in loss.grad_fn.kept.values())
    assert sizes[0.0] == 0
    assert 0 < sizes[1.2e-6] <= 1200
    assert sizes[4.0] == C * G * 8


def test_two_losses_at_a_time_share_no_memory():
    """Memory of a former step is lent out once; what a loss keeps for its backward pass is nobody else's."""
    classifier = PartialFC(C, D, ClassifierConfig(chunk=10), OPTIMS[0], World(), 0, torch.float64)
    x = torch.randn(2, G, D, dtype=torch.float64)
    alone = []
    for rows in x:
        leaf = rows.clone().requires_grad_()
        classifier.loss(leaf, np.arange(G)).backward()
        alone.append(leaf.grad)
    leaves = [rows.clone().requires_grad_() for rows in x]
    for loss in [classifier.loss(leaf, np.arange(G)) for leaf in leaves]:
        loss.backward()
    for leaf, expected in zip(leaves, alone, strict=True):
        assert torch.equal(leaf.grad, expected)


def test_blocks_of_large_batches_are_narrower():
    classifier = PartialFC(6000, D, ClassifierConfig(), OPTIMS[0], World(), 0)
    widths = {}
    for rows in (1, 512, 1024, 8192):
        loss = classifier.loss(torch.randn(rows, D, requires_grad=True), np.arange(rows) % 6000)
        widths[rows] = loss.grad_fn.spec.chunk
    assert widths == {1: 4096, 512: 4096, 1024: 2048, 8192: 1024}
    assert PartialFC(9, D, ClassifierConfig(chunk=7), OPTIMS[0], World(), 0)._spec_for(8192).chunk == 7


def test_scratch_lends_what_it_got_back():
    scratch, like = Scratch(), torch.zeros(1)
    first = scratch.take((4, 5), like, torch.float32)
    assert scratch.take((4, 5), like, torch.float32).data_ptr() != first.data_ptr()
    scratch.give(first)
    assert scratch.take((2, 3), like, torch.float64).data_ptr() != first.data_ptr()
    again = scratch.take((2, 3), like, torch.float32)
    assert again.data_ptr() == first.data_ptr()
    assert again.shape == (2, 3)
    scratch.give(again)
    assert scratch.take((4, 5), like, torch.float32).data_ptr() == first.data_ptr()


def test_a_shard_without_classes_has_a_loss_and_an_update():
    classifier = PartialFC(2, D, ClassifierConfig(), OPTIMS[0], World(rank=2, size=3), 0)
    assert classifier.weight.shape == (0, D)
    classifier.begin(np.array([0, 1]), 0, 0.1)
    classifier.step(0.1)
