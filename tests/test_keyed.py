import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from facetrain.keyed import bits, text_key, uniform

KEYS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4)


@given(KEYS)
def test_a_number_depends_on_its_key_alone(key):
    assert bits(*key) == bits(*key)
    alone = bits(*key, 7)
    assert np.array_equal(bits(*key, np.arange(10))[7], alone)


@given(KEYS, st.integers(0, 3))
def test_every_part_of_the_key_counts(key, place):
    other = list(key)
    other[place % len(key)] ^= 1
    assert bits(*other) != bits(*key)


def test_uniform_is_uniform_along_every_part_of_the_key():
    for numbers in (uniform(5, np.arange(100_000)), uniform(np.arange(100_000), 5), uniform(np.arange(100_000))):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = np.histogram(numbers, 50, (0, 1))[0]
        assert np.square(counts - 2000).sum() / 2000 < 100  # chi square, 49 degrees of freedom: 99.99 % lie below 98
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.02


def test_broadcasting_and_text_keys():
    assert uniform(np.arange(3)[:, None], np.arange(4)).shape == (3, 4)
    assert len(np.unique(bits(np.arange(300)[:, None], np.arange(300)))) == 90_000
    assert text_key("order") != text_key("redro")
    assert 0 <= text_key("") < 2**64
