import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetrain import keyed
from facetrain.data import sampler
from facetrain.data.sampler import batch_indices, permutation, steps_per_epoch
from facetrain.errors import InputError


def test_permutation_is_a_bijection_for_every_small_n():
    for n in range(1, 2001):
        assert np.array_equal(np.sort(permutation(n, 5, n % 3, np.arange(n))), np.arange(n)), n


@settings(max_examples=15, deadline=None)
@given(n=st.integers(2001, 300_000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000))
def test_permutation_is_a_bijection_for_large_n(n, seed, epoch):
    seen = np.zeros(n, bool)
    seen[permutation(n, seed, epoch, np.arange(n))] = True
    assert seen.all()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 2**40), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_permutation_is_defined_place_by_place(n, seed, data):
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True)))
    whole = permutation(n, seed, 1, places)
    assert ((whole >= 0) & (whole < n)).all()
    assert len(set(whole.tolist())) == len(places)
    assert [int(permutation(n, seed, 1, np.array([place]))[0]) for place in places] == whole.tolist()


@given(key=st.integers(0, 2**64 - 1), values=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9))
def test_the_rounds_use_keyed_bits(key, values):
    values = np.array(values, np.uint64)
    state = keyed.absorbed(np.uint64(key))
    assert np.array_equal(sampler._bits(state, values), keyed.bits(np.uint64(key), values))


def test_permutation_looks_random():
    n, cells, epochs = 1000, 10, 200
    table = np.zeros((cells, cells))
    for epoch in range(epochs):
        np.add.at(table, (np.arange(n) // 100, permutation(n, 0, epoch, np.arange(n)) // 100), 1)
    expected = n * epochs / cells**2
    chi_square = ((table - expected) ** 2 / expected).sum()
    assert 45 < chi_square < 130  # 81 degrees of freedom: mean 81, standard deviation 13


def test_small_permutations_reach_every_order():
    orders = {tuple(permutation(4, 0, epoch, np.arange(4)).tolist()) for epoch in range(1000)}
    assert len(orders) == 24


def test_neighbours_do_not_stay_together():
    order = permutation(10_000, 0, 0, np.arange(10_000))
    assert (np.abs(np.diff(order)) == 1).sum() < 15  # 2 expected
    assert (order == np.arange(10_000)).sum() < 10  # 1 expected


def test_seeds_and_epochs_differ():
    places = np.arange(100)
    one = permutation(100, 0, 0, places)
    assert not np.array_equal(one, permutation(100, 1, 0, places))
    assert not np.array_equal(one, permutation(100, 0, 1, places))


def test_an_epoch_holds_every_image_at_most_once_and_leaves_out_the_short_batch():
    seen = np.concatenate([batch_indices(103, 10, 0, step)[1] for step in range(10)])
    assert len(np.unique(seen)) == 100
    assert [batch_indices(103, 10, 0, step)[0] for step in (0, 9, 10, 20)] == [0, 0, 1, 2]
    left_out = set(range(103)) - set(seen.tolist())
    later = {int(i) for step in range(10, 20) for i in batch_indices(103, 10, 0, step)[1]}
    assert left_out & later


@given(n=st.integers(5, 200), batch=st.integers(1, 5), steps=st.lists(st.integers(0, 500), min_size=1, max_size=9))
def test_several_updates_are_each_one(n, batch, steps):
    for step, (epoch, indices) in zip(steps, sampler.batches_indices(n, batch, 3, steps), strict=True):
        per_epoch = n // batch
        assert epoch == step // per_epoch
        places = step % per_epoch * batch + np.arange(batch)
        assert np.array_equal(indices, permutation(n, 3, epoch, places))


def test_too_few_images():
    with pytest.raises(InputError, match=r"data have 7 images, fewer than one batch of .*_size 8: set .* at most 7"):
        batch_indices(7, 8, 0, 0)
    assert steps_per_epoch(8, 8) == 1
