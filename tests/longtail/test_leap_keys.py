"""What single keys of the recipe's leap section do, and where they are refused."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from facetrain.classifier.clouds import TABLE, Cloud
from facetrain.classifier.softmax import Turned
from facetrain.config import Config
from facetrain.config_loss import LeapConfig
from facetrain.distributed import World
from facetrain.evaluation.class_map import map_people
from facetrain.longtail.leap import Leap

COUNTS = np.array([6, 6, 2, 2, 1])
TAIL = {"variant": "vanilla", "head_threshold": 2}


def _leap(**keys):
    return Leap(LeapConfig(**(TAIL | keys)), COUNTS, 3, World(), 0, 0, 4, torch.float64)


def _std(leap):
    cloud = leap.cloud(np.arange(len(COUNTS)), 0, 0)
    std = np.zeros(len(COUNTS))
    std[cloud.rows] = cloud.std
    return std


def test_a_fixed_sigma_is_the_tails_from_the_first_step():
    np.testing.assert_allclose(_std(_leap(fixed_sigma=0.1)), [0, 0, 0.1, 0.1, 0.1])


def test_everyone_spreads_the_tails_variance_over_all_images():
    variance = 0.1**2 * (2 + 2 + 1) / COUNTS.sum()
    np.testing.assert_allclose(_std(_leap(fixed_sigma=0.1, cloud_for="everyone")), [math.sqrt(variance)] * 5)


def test_everyone_with_learned_spreads():
    leap = _leap(cloud_for="everyone")
    leap.variance.copy_(torch.tensor([0.05, 0.07, 0.02, 0.08, torch.nan]))
    leap.follow()
    assert leap.target == pytest.approx(0.06)
    np.testing.assert_allclose(_std(leap), [math.sqrt((0.06 - 0.02) * 2 / COUNTS.sum())] * 5)


def test_no_clouds_before_their_time_or_before_anything_is_known():
    assert _std(_leap()).tolist() == [0] * 5
    leap = Leap(LeapConfig(**TAIL, fixed_sigma=0.1), COUNTS, 3, World(), 0, 7, 4)
    assert leap.cloud(np.arange(5), 6, 0) is None
    assert leap.cloud(np.arange(5), 7, 0) is not None


@pytest.mark.parametrize(
    ("epochs", "cycles", "leap", "per_epoch", "step"),
    [
        (30, 3, {}, 1000, 20_000),
        (7, 3, {"start_cycle": 2}, 27, 63),  # 2.3333333333333335 * 27 is a little more
        (10, 3, {"start_epoch": 0.07}, 100, 7),
        (10, 3, {"start_epoch": 2.5}, 7, 18),
    ],
)
def test_the_first_step_with_clouds(epochs, cycles, leap, per_epoch, step):
    assert _config(epochs, cycles, leap).cloud_start_step(per_epoch) == step


def _config(epochs=30, cycles=3, leap=None, schedule=None):
    return Config.model_validate(
        {
            "output": "o",
            "data": {"path": "d"},
            "leap": TAIL | (leap or {}),
            "schedule": schedule or {"name": "triangular", "cycles": cycles},
            "train": {"epochs": epochs},
        }
    )


@pytest.mark.parametrize(
    ("leap", "schedule", "words"),
    [
        ({"start_cycle": 4}, None, "begins after the end: schedule.cycles is 3"),
        ({"start_epoch": 30}, None, "clouds would begin after 30 of train.epochs 30"),
        ({"start_cycle": 2}, {"name": "cosine"}, "needs schedule.name: triangular; set leap.start_epoch"),
        ({}, {"name": "cosine"}, "leap.start_epoch must say when clouds begin"),
        ({}, {"name": "triangular", "cycles": 2}, "clouds would begin after 30 of train.epochs 30"),
        ({"start_epoch": 1, "start_cycle": 1}, None, "exclude each other"),
        ({"head_threshold": None}, None, "variant: vanilla needs head_threshold"),
        ({"memory_factor": 0}, None, "greater than or equal to 1"),
        ({"center_gamma": 1.0}, None, "less than 1"),
        ({"variant": "off", "head_threshold": None, "cloud_noise": "per_sample"}, None, "cloud_noise has no effect"),
        ({"variant": "off", "head_threshold": 4}, None, "head_threshold has no effect without variant"),
        ({"variant": "full", "fixed_sigma": 0.1}, None, "fixed_sigma has no effect without variant: vanilla"),
    ],
)
def test_keys_that_cannot_work_are_named(leap, schedule, words):
    with pytest.raises(ValidationError, match=words):
        _config(leap=leap, schedule=schedule)


def test_tracking_may_stay_on_where_it_is_implied():
    assert _config(leap={"track": True}).leap.active


@pytest.mark.parametrize("rows", [0, 3])
def test_another_device_turns_all_rows_at_once_and_asks_nothing(rows):
    """On tensors without values: whoever asked one for its value would fail."""
    meta = torch.device("meta")
    cloud = Cloud(
        np.arange(rows),
        torch.empty(rows, device=meta),
        torch.empty(rows, dtype=torch.int64, device=meta),
        torch.empty(TABLE + 8, device=meta),
        True,
    )
    slopes = Turned(cloud, range(20), torch.zeros(5)).turn_(torch.empty((5, 8), device=meta), 3, 11)
    assert slopes.shape == (rows, 8)


@pytest.mark.parametrize(
    ("threshold", "expected_heads"),
    [(2, {0, 1}), (5, {0, 1}), (None, {0, 1}), (100, set())],
)
def test_people_of_the_map(threshold, expected_heads):
    people, heads = map_people(COUNTS, threshold, 0)
    assert set(people[:heads]) == expected_heads
    assert set(people) == {0, 1, 2, 3}  # one image is no cloud
    assert len(map_people(np.ones(3, np.int64), threshold, 0)[0]) == 0
