"""The scaling model against cases worked out by hand, and its page against what it prints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools"))

import scaling
from scaling_model import (
    BUCKET,
    Backbone,
    Kernels,
    Links,
    Setup,
    all_reduce,
    classifier_seconds,
    exposed_gradients,
    gradient_seconds,
    host_bytes,
    kept_share,
    memory_bytes,
    ring,
    step_seconds,
    tree,
)
from scaling_peers import MODEL_PARALLEL, SAMPLED, ends, plain_seconds

LINKS = Links(inside=350e9, between=366e9)
US = 1e-6


@pytest.mark.parametrize(
    ("size", "gpus", "rounds", "expected"),
    [
        (1e9, 1, 1, 0.0),
        (0, 8, 1, (6.6 + 7 * 0.6) * US),  # LL: the fewest microseconds
        (0, 8, 2, (6.6 + 14 * 0.6) * US),
        (0, 16, 1, (6.6 + 14 * 1.0 + 1 * 2.7) * US),  # two hosts: one step of fifteen between them
        (8e9, 8, 1, (8.4 + 7 * 3.4) * US + 7 / 350),  # Simple: 7 GB arrive at 350 GB/s
        (8e9, 8, 2, (8.4 + 14 * 3.4) * US + 14 / 350),
        (64e9, 64, 1, (8.4 + 56 * 3.4 + 7 * 14) * US + 63 / 366),
        (8e6, 8, 1, (14 + 7 * 1.9) * US + 7e6 / (0.92 * 350e9)),  # LL128 in between
    ],
)
def test_rings_by_hand(size, gpus, rounds, expected):
    assert ring(size, gpus, LINKS, rounds) == pytest.approx(expected, rel=1e-12)


def test_trees_by_hand():
    assert tree(0, 8, LINKS) == pytest.approx((6.8 + 2 * 7 * 0.6) * US)
    assert tree(0, 64, LINKS) == pytest.approx((6.8 + 2 * (7 * 0.6 + 3 * 5.0)) * US)
    assert tree(64e9, 64, LINKS) == pytest.approx((8.4 + 2 * (7 * 4 + 3 * 14)) * US + 64e9 * 2 / (0.92 * 366e9))
    assert all_reduce(0, 8, LINKS) == ring(0, 8, LINKS, 2)
    assert all_reduce(0, 64, LINKS) == tree(0, 64, LINKS)
    assert tree(1e9, 1, LINKS) == 0


def test_columns_rows_and_what_is_kept():
    setup = Setup(gpus=4, classes=1001, rate=0.1, batch=10)
    assert (setup.rows, setup.own) == (40, 251)
    assert setup.columns == pytest.approx(25.1 + 0.9 * 10)
    assert Setup(4, 12, 0.5, batch=10).columns == 0.5 * 3 + 0.5 * 3  # no more of a batch's classes than there are
    full = Setup(gpus=4, classes=1000, rate=1.0, batch=10, keep=250 * 2 * (40 + 512) / 4)
    assert kept_share(full) == 0.25
    assert kept_share(Setup(gpus=4, classes=1000, rate=1.0, batch=10)) == 1


KERNELS = Kernels(of_class=3.0, of_pair=0.5, again_class=2.0, again_pair=0.25, cloud_pair=0.125, bandwidth=1e15)


def test_the_classifier_by_hand():
    setup = Setup(gpus=2, classes=8, rate=1.0, batch=2, leap=False, keep=4 * 2 * (4 + 512) / 2)
    # 4 classes x 4 rows; half of them again: 4 * 3 + 16 / 2 + (4 * 2 + 16 / 4) / 2
    assert classifier_seconds(setup, KERNELS) == 12 + 8 + 6
    with_clouds = Setup(gpus=2, classes=8, rate=1.0, batch=2, keep=4 * 2 * (4 + 512) / 2)
    assert classifier_seconds(with_clouds, KERNELS) == 12 + 8 + 6 + 2


NETWORK = Backbone("toy", speed=1000.0, parameters=4 * BUCKET // 4, saved=1000)


def test_gradients_hide_behind_the_backward_pass():
    bucket = all_reduce(BUCKET, 8, LINKS)
    assert gradient_seconds(NETWORK, 8, LINKS) == pytest.approx(4 * bucket)
    assert exposed_gradients(Setup(8, 1000, 1.0, batch=128), NETWORK, LINKS) == bucket
    hasty = Backbone("toy", speed=1e9, parameters=4 * BUCKET // 4, saved=1000)
    assert exposed_gradients(Setup(8, 1000, 1.0), hasty, LINKS) == pytest.approx(4 * bucket - 2 / 3 * 128e-9)
    assert exposed_gradients(Setup(1, 1000, 1.0), hasty, LINKS) == 0


def test_a_step_is_the_sum_of_its_parts():
    setup = Setup(gpus=8, classes=1000, rate=1.0, batch=16)
    parts = step_seconds(setup, KERNELS, NETWORK, LINKS)
    assert parts["backbone"] == pytest.approx(0.016, rel=1e-4)
    assert parts["gather"] == parts["scatter"] == ring(128 * 512 * 4, 8, LINKS, 1)
    assert parts["exchange"] == all_reduce(128 * 16, 8, LINKS)
    assert parts["LEAP"] == pytest.approx(all_reduce(5 * 128 * 8, 8, LINKS) / 5, rel=1e-4)
    assert step_seconds(Setup(1, 1000, 1.0), KERNELS, NETWORK, LINKS)["exchange"] == 0
    assert step_seconds(Setup(8, 1000, 1.0, leap=False), KERNELS, NETWORK, LINKS)["LEAP"] == 0


def test_memory_by_hand():
    parts = memory_bytes(Setup(gpus=2, classes=200, rate=1.0, batch=4, chunk=64), NETWORK)
    assert parts["weights, momentum"] == 100 * 4096
    assert parts["kept"] == 100 * 2 * (8 + 512)
    assert parts["block"] == 64 * (8 * 6 + 1024 + 2048)
    assert parts["rows"] == 6 * 8 * 2048
    assert parts["backbone"] == 14 * NETWORK.parameters + 2 * 4 * 1000
    assert parts["LEAP, own"] == 100 * (2048 + 16 + 40) + 2 * 5 * 4 * 2048
    assert parts["LEAP, all"] == 200 * 41
    plain = Setup(gpus=2, classes=200, rate=0.5, batch=4, leap=False)
    assert memory_bytes(plain, NETWORK)["weights, momentum"] == 100 * 4097
    assert memory_bytes(plain, NETWORK)["LEAP, all"] == 0
    assert host_bytes(Setup(gpus=16, classes=1600, rate=0.1)) == 8 * (1600 * 9 + 100 * 17 + 100)


def test_the_published_lines_are_reproduced():
    """From two ends of model parallel, the sampled lines: within 3.5 % up to 8 million identities, 15 % beyond."""
    fixed, each = ends(MODEL_PARALLEL, 0)
    assert fixed + each * 125_000 / 8 == pytest.approx(1024 / 4824)
    for classes, (speed, _) in SAMPLED.items():
        found = 1024 / (fixed + 0.1 * each * classes / 8)
        assert found == pytest.approx(speed, rel=0.035 if classes <= 8_000_000 else 0.15)
    assert plain_seconds(1000, 6 * 512 * 1000.0, 1e30) == pytest.approx(1.0)


def test_the_page_holds_what_the_tool_prints():
    page = (Path(scaling.__file__).parent.parent / "docs" / "scaling.md").read_text()
    for title, text in scaling.sections():
        assert text in page, f"docs/scaling.md is not what tools/scaling.py prints under: {title}"
