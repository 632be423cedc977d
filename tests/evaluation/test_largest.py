"""The largest of any values, and pair scores as values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from facetrain.evaluation.largest import MOST_PEOPLE, Largest, packed, unpacked

PERSON = st.integers(0, MOST_PEOPLE - 1)
SCORES = st.floats(-2, 2, width=32) | st.sampled_from([0.0, -0.0, 0.5])


@given(st.lists(st.tuples(SCORES, PERSON, PERSON), min_size=1, max_size=50))
def test_packed_pairs_come_back_and_sort_by_score_then_people(pairs):
    scores, first, second = (np.array(column) for column in zip(*pairs, strict=True))
    keys = packed(scores.astype(np.float32), first, second)
    found, people = unpacked(keys)
    np.testing.assert_array_equal(found, scores)
    np.testing.assert_array_equal(people, np.stack((first, second), axis=1))
    np.testing.assert_array_equal(np.argsort(keys, kind="stable"), np.lexsort((second, first, scores)))
    assert not np.signbit(found[found == 0]).any()


@given(arrays(np.float32, st.integers(0, 400), elements=SCORES), st.integers(0, 90), st.integers(1, 60), st.booleans())
@settings(deadline=None)
def test_the_largest_are_those_of_a_sort(values, count, block, whole):
    values = (values * 1000 + 3000).astype(np.uint64) if whole else values
    largest = Largest(count, block, values.dtype)
    for start in range(0, len(values), block):
        largest.add(values[start : start + block])
    np.testing.assert_array_equal(np.sort(largest.values()), np.sort(values)[max(0, len(values) - count) :])


@pytest.mark.parametrize("dtype", [np.float32, np.uint64])
def test_room_is_bounded(dtype):
    largest = Largest(100, 40, dtype)
    for part in np.array_split(np.arange(10_000).astype(dtype), 250):
        largest.add(part)
    assert len(largest._room) == 165
    assert largest.floor >= 9_800
