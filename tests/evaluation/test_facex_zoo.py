"""FaceX-Zoo's accuracy against its protocol written out."""

from __future__ import annotations

import numpy as np
import pytest

from facetrain.errors import InputError
from facetrain.evaluation.facex_zoo import facex_zoo_accuracy


def _written_out(scores, same):
    """Every threshold counted with loops; official list, ten folds of equal length."""
    folds = np.arange(len(scores)).reshape(10, -1)
    accuracies, thresholds = [], []
    for k in range(10):
        train = np.concatenate([folds[j] for j in range(10) if j != k])
        genuine, impostor = scores[train][same[train]], scores[train][~same[train]]
        low, high = scores[train].min(), scores[train].max()
        best, at = -np.inf, None
        for step in range(1, 1001):
            threshold = low + (high - low) / 1000 * step
            gain = np.mean(genuine > threshold) - np.mean(impostor > threshold)
            if gain > best:
                best, at = gain, threshold
        right = [s > at if label else s < at for s, label in zip(scores[folds[k]], same[folds[k]], strict=True)]
        accuracies.append(np.mean(right))
        thresholds.append(at)
    return np.array(accuracies), np.array(thresholds)


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_the_protocol_written_out(seed):
    rng = np.random.default_rng(seed)
    same = np.arange(600) // 30 % 2 == 0
    scores = rng.normal(np.where(same, 0.6, 0.1), 0.2)
    accuracies, thresholds = _written_out(scores, same)
    found = facex_zoo_accuracy(scores, same)
    np.testing.assert_allclose(found.accuracies, accuracies)
    np.testing.assert_allclose(found.thresholds, 2 - 2 * thresholds)
    assert found.mean == pytest.approx(accuracies.mean())
    assert found.std == pytest.approx(np.std(accuracies, ddof=1) / np.sqrt(10))
    assert 0.8 < found.mean < 1


def test_uneven_folds_and_too_few_pairs():
    same = np.arange(47) % 2 == 0
    assert facex_zoo_accuracy(np.where(same, 0.9, 0.1), same).mean == 1
    with pytest.raises(InputError, match="9 pairs are too few for 10 folds"):
        facex_zoo_accuracy(np.zeros(9), same[:9])
    with pytest.raises(InputError, match="without fold 0 of 10 one kind of pairs is missing"):
        facex_zoo_accuracy(np.linspace(0, 1, 20), np.arange(20) < 2)
