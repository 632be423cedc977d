"""LEAP's sharded state and clouds against the literal reference, on 1, 2 and 3 ranks, in float64."""

import numpy as np
import pytest
import torch
from leap_reference import Reference
from ranks import run_ranks

from facetrain.config_loss import LeapConfig
from facetrain.distributed import World
from facetrain.keyed import uniform
from facetrain.longtail.angles import UNIT
from facetrain.longtail.leap import Leap

D, ROWS, STEPS = 5, 8, 13
COUNTS = np.array([6, 1, 3, 40, 2, 5, 9, 2, 4, 7, 3])  # class 10 is never seen; 1 has one image
NEVER = 10
CASES = [
    {"variant": "vanilla", "head_threshold": 4},
    {"variant": "full"},
    {"variant": "vanilla", "head_threshold": 4, "center_gamma": 0.1, "angle_against": "updated"},
    {"variant": "full", "memory_factor": 3, "sync_interval": 2},
    {"variant": "full", "angle_against": "updated", "sync_interval": 1, "center_gamma": 0.0},
]


def stream(step, micro):
    """Embeddings (ROWS, D) that drift slowly around their class's place, and labels with classes seen twice."""
    labels = np.floor(NEVER * uniform(1, step, micro, np.arange(ROWS)) ** 2).astype(np.int64)
    place = uniform(2, labels[:, None], np.arange(D)) - 0.5
    noise = uniform(3, step, micro, np.arange(ROWS)[:, None], np.arange(D)) - 0.5
    return (place + 0.4 * noise) * (1 + np.arange(ROWS))[:, None], labels


def follow(world, keys, stop_after=STEPS, micros=2):
    leap = Leap(LeapConfig(**keys), COUNTS, D, world, 0, 0, 4, torch.float64)
    for step in range(stop_after):
        for micro in range(micros):
            embeddings, labels = stream(step, micro)
            leap.observe(torch.from_numpy(embeddings), labels)
        leap.end_step(step + 1)
    return leap


def reference(keys, micros=2):
    model = Reference(COUNTS.tolist(), **({"head_threshold": None} | keys))
    for step in range(STEPS):
        for micro in range(micros):
            model.observe(*stream(step, micro))
        model.end_step()
    return model


def ring_of(leap, row):
    """Angles of a local class, oldest first."""
    angles, written = leap.angles, int(leap.angles.written[row])
    start, capacity = int(angles.starts[row]), int(angles.capacity[row])
    codes = (angles.codes[start : start + capacity].long() + 32768).numpy()
    return (codes[:written] if written < capacity else np.roll(codes, -(written % capacity))) * UNIT


def what_it_holds(world, keys):
    leap = follow(world, keys)
    rings = [ring_of(leap, row) for row in range(len(leap.classes))]
    cloud = leap.cloud(np.arange(len(COUNTS)), STEPS, 0)
    std = np.zeros(len(COUNTS))
    std[cloud.rows] = cloud.std
    return leap.centers.value.numpy(), rings, leap.variance.numpy(), std, float(leap.target)


@pytest.fixture(scope="module")
def found():
    return {size: run_ranks(size, _all_cases) for size in (1, 2, 3)}


def _all_cases(world):
    return [what_it_holds(world, keys) for keys in CASES]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_state_and_clouds_equal_the_reference(found, size, number):
    expected = reference(CASES[number])
    ranks = [rank[number] for rank in found[size]]
    centres = np.concatenate([rank[0] for rank in ranks])
    rings = [ring for rank in ranks for ring in rank[1]]
    wrapped = 0
    for label, count in enumerate(COUNTS):
        np.testing.assert_allclose(centres[label], expected.centres.get(label, np.zeros(D)), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(rings[label], expected.rings.get(label, []), rtol=0, atol=1e-12)
        wrapped += len(rings[label]) == count * CASES[number].get("memory_factor", 1)
    assert wrapped >= 4  # rings that were overwritten
    for _, _, variance, std, target in ranks:  # every rank knows the spread of every class
        for label in range(len(COUNTS)):
            np.testing.assert_allclose(variance[label], expected.variances.get(label, np.nan), rtol=1e-9)
            np.testing.assert_allclose(std[label], expected.cloud_std(label), atol=1e-9)
        np.testing.assert_allclose(target, expected.overall_variance(), rtol=1e-10)
    assert (std > 0).any()
    assert (std == 0).any()
    assert NEVER not in expected.variances


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_agree_to_the_last_bit(found, size):
    for number in range(len(CASES)):
        for alone, together in zip(found[1][0][number][2:], found[size][size - 1][number][2:], strict=True):
            np.testing.assert_array_equal(alone, together)


def test_a_class_with_more_rows_than_slots_keeps_the_last():
    leap = Leap(LeapConfig(variant="full", sync_interval=1), np.array([2, 3]), D, World(), 0, 0, 4, torch.float64)
    model = Reference([2, 3], variant="full", head_threshold=None, sync_interval=1)
    for step in range(3):
        rows = uniform(9, step, np.arange(7)[:, None], np.arange(D))
        for one in (leap, model):
            one.observe(torch.from_numpy(rows) if one is leap else rows, np.array([0, 0, 1, 0, 0, 0, 1]))
        leap.end_step(step + 1)
        model.end_step()
    np.testing.assert_allclose(ring_of(leap, 0), model.rings[0], atol=1e-12)
    np.testing.assert_allclose(leap.variance.numpy(), [model.variances[0], model.variances[1]], rtol=1e-9)
