"""Means and paired differences against scipy and numbers worked out by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools"))

import study_cells
from study_numbers import mean_of, paired

from facetrain.evaluation.result import Result


def test_by_hand():
    # Differences 1, 2, 6: mean 3, squared deviations 4 + 1 + 9, s = sqrt(7); t(0.975, 2) = 4.30265.
    found = paired({0: 11.0, 1: 22.0, 2: 36.0, 5: 99.0}, {0: 10.0, 1: 20.0, 2: 30.0, 7: 1.0})
    assert found is not None
    assert (found.mean, found.count) == (3.0, 3)
    half = 4.30265273 * math.sqrt(7 / 3)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-8)
    mean = mean_of({3: 1.0, 4: 2.0, 9: 6.0})
    assert mean is not None
    assert (mean.mean, mean.deviation, mean.count) == (3.0, pytest.approx(math.sqrt(7)), 3)


def test_one_seed_has_no_interval_and_none_has_nothing():
    found = paired({1: 3.0, 2: 5.0}, {2: 4.5})
    assert found is not None
    assert (found.mean, found.count) == (0.5, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert paired({1: 3.0}, {2: 4.5}) is None
    assert mean_of({}) is None
    alone = mean_of({4: 2.5})
    assert alone is not None
    assert math.isnan(alone.deviation)


rates = st.floats(0, 100, allow_subnormal=False)


@given(st.lists(st.tuples(rates, rates), min_size=2, max_size=12), st.sampled_from([0.5, 0.95, 0.99]))
def test_as_scipy_says(pairs, level):
    ours, theirs = np.array(pairs).T
    found = paired(dict(enumerate(ours)), dict(enumerate(theirs)), level)
    assert found is not None
    difference = ours - theirs
    assert found.mean == pytest.approx(difference.mean(), abs=1e-9)
    if difference.std() > 1e-9:
        low, high = stats.ttest_rel(ours, theirs).confidence_interval(level)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


def test_pairing_takes_out_what_the_seeds_share():
    seeds = np.random.default_rng(0).normal(70, 5, 6)
    baseline = dict(enumerate(seeds))
    method = {seed: value + 1 + 0.01 * seed for seed, value in baseline.items()}
    found = paired(method, baseline)
    assert found is not None
    assert 1 < found.low < found.high < 1.1
    apart = mean_of(baseline)
    assert apart is not None
    assert apart.deviation > 1


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["heldout"], [None]),
        (["seen", "seen, head", "seen, tail"], [None, "head", "tail"]),
        (["lfw", "cfp_fp"], ["lfw", "cfp_fp"]),
        (["IJB-C", "IJB-B"], ["IJB-C", "IJB-B"]),
    ],
)
def test_parts_of_a_file_of_results(names, parts):
    results = [Result("p", name, "", "m") for name in names]
    assert study_cells._parts(results) == list(zip(parts, results, strict=True))
