import pickle

import numpy as np
import pytest

from facetrain.data.pairs_file import available_pairs, draw_pairs, write_bin
from facetrain.errors import InputError


@pytest.mark.parametrize("sizes", [[10] * 10, [2] * 30, [1] * 50 + [9] * 4, [40, 40], [3, 200, 1, 7]])
@pytest.mark.parametrize("count", [20, 400, 6000])
def test_pairs_are_distinct_and_in_order(sizes, count):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)) * 3 + 5, sizes))
    first, second, same = draw_pairs(labels, count, seed=1)
    n = len(first)
    available = available_pairs(np.array(sizes))
    assert n == min(count // 20, available[0] // 10, available[1] // 10) * 20
    assert np.array_equal(labels[first] == labels[second], same)
    assert (same.reshape(10, 2, n // 20) == np.array([True, False])[:, None]).all()
    assert (first != second).all()
    assert len({frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}) == n


def test_pairs_are_balanced_over_people():
    labels = np.repeat(np.arange(40), np.arange(40) + 3)
    first, second, same = draw_pairs(labels, 2400, seed=0)
    of_one = np.bincount(labels[first[same]], minlength=40)
    assert of_one.max() - np.minimum(of_one[8:], of_one.max()).min() <= 1  # who has enough photos has an equal share
    assert of_one[0] == 3
    of_two = np.bincount(labels[np.concatenate([first[~same], second[~same]])], minlength=40)
    assert of_two.min() > 30  # 60 expected
    assert of_two.max() < 100


def test_pairs_follow_the_seed():
    labels = np.repeat(np.arange(10), 10)
    one, again, other = (np.stack(draw_pairs(labels, 200, seed)[:2]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_too_few_pairs():
    with pytest.raises(InputError, match="3 people with 6 photos give 3 pairs of one person and 12 of two; at"):
        draw_pairs(np.repeat([0, 1, 2], 2), 6000)


def test_bin_is_plain_python(tmp_path):
    write_bin(tmp_path / "x.bin", [memoryview(b"a"), b"b", b"c", b"d"], np.array([True, False]))
    data = (tmp_path / "x.bin").read_bytes()
    assert pickle.loads(data) == ([b"a", b"b", b"c", b"d"], [True, False])
    assert b"numpy" not in data
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]
