import numpy as np
import torch

from facetrain.classifier.partial_fc import PartialFC, initial_weights, sample_classes
from facetrain.config import OptimConfig
from facetrain.config_loss import ClassifierConfig
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
