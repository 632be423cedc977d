"""Any number of ranks goes on from what any other number wrote: all that was saved is there again, bit for bit.

Reliability goal 3, at the level of the state: feature clouds on, in mid-epoch, between two of LEAP's synchronisations,
with a prime number of people and with fewer people than ranks.
"""

import numpy as np
import pytest
import torch
from made_up_states import SAVED_AFTER, advance, saved_state, train_state
from ranks import run_ranks
from test_train_ranks import FULL

RANKS = (1, 2, 3, 4)
PEOPLE = {"a prime number of people": 2 + np.arange(13) % 5, "fewer people than ranks": np.array([5, 2, 3])}
LEAP = FULL | {"memory_factor": 2}

pytestmark = pytest.mark.faults


def _held(state):
    """Name -> (first row in the whole, rows of this rank, total) of all that is saved."""
    return {name: (piece.first, piece.tensor.clone(), piece.total) for name, piece in state._pieces().items()} | {
        "variance": (0, state.leap.variance.clone(), None),
        "step": (0, torch.tensor(state.step), None),
    }


def _wholes(everyone):
    """The same of all ranks together; what is not spread must be the same on each."""
    wholes = {}
    for name, (_, rows, total) in everyone[0].items():
        if total is None:
            assert all(torch.equal(rows, held[name][1].nan_to_num(9)) for held in everyone) or name == "variance"
            wholes[name] = rows.nan_to_num(9)
        else:
            assert [held[name][2] for held in everyone] == [total] * len(everyone)
            wholes[name] = torch.cat([held[name][1] for held in everyone])
            assert len(wholes[name]) == total
    order = torch.argsort(wholes["leap.pending_class"], stable=True)  # ranks have them by class, each class by age
    for name in ("leap.pending", "leap.pending_class"):
        wholes[name] = wholes[name][order]
    return wholes


def _check_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def _train_and_save(world, folder):
    """For each set of people a state that has been trained for a while, and the checkpoint of it."""
    saved = {}
    for what, counts in PEOPLE.items():
        state = train_state(world, LEAP, folder / what / f"{world.size} ranks", counts)
        advance(state, SAVED_AFTER)
        assert state.leap.pending_labels.size or world.size > 1
        saved[what] = saved_state(state), _held(state)
    return saved


def _load(world, paths):
    found = []
    for what, path in paths:
        state = train_state(world, LEAP, path.parent.parent, PEOPLE[what])
        state.load(path)
        found.append(_held(state))
    return found


def test_all_sixteen_pairs_of_one_to_four_ranks(tmp_path):
    paths, expected = [], []
    for size in RANKS:
        saved = run_ranks(size, _train_and_save, tmp_path)
        for what in PEOPLE:
            paths.append((what, saved[0][what][0]))
            expected.append(_wholes([rank[what][1] for rank in saved]))
            assert len(expected[-1]["leap.pending"]) > 0
            assert (expected[-1]["leap.written"] > 0).any()
    for size in RANKS:
        loaded = run_ranks(size, _load, paths)
        for number, whole in enumerate(expected):
            _check_same(_wholes([rank[number] for rank in loaded]), whole)


def _hand_on(world, path, output, what):
    state = train_state(world, LEAP, output, PEOPLE[what])
    state.load(path)
    return saved_state(state), _held(state)


@pytest.mark.parametrize("what", PEOPLE)
def test_a_chain_of_five_numbers_of_ranks_changes_nothing(tmp_path, what):
    saved = [rank[what] for rank in run_ranks(2, _train_and_save, tmp_path)]
    expected = _wholes([held for _, held in saved])
    path = saved[0][0]
    for number, size in enumerate((3, 1, 4, 2)):
        handed = run_ranks(size, _hand_on, path, tmp_path / str(number), what)
        path = handed[0][0]
        _check_same(_wholes([held for _, held in handed]), expected)
