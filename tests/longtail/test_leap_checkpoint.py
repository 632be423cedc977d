"""LEAP's state in checkpoints: taken between two synchronisations, continued by another number of ranks."""

import numpy as np
import pytest
import torch
from made_up_states import COUNTS, SAVED_AFTER, advance, saved_state, train_state
from ranks import run_ranks
from test_train_ranks import FULL, VANILLA

from facetrain.distributed import World
from facetrain.errors import InputError

STEPS = 20


def _save_and_go_on(world, leap, output):
    state = train_state(world, leap, output)
    advance(state, SAVED_AFTER)
    assert len(state.leap.pending)
    path = saved_state(state)
    return path, advance(state, STEPS), _held(state)


def _continue(world, leap, path):
    state = train_state(world, leap, path.parent.parent)
    state.load(path)
    return advance(state, STEPS), _held(state)


def _held(state):
    """Centres and rings of this rank, and what all ranks know."""
    leap = state.leap
    return leap.centers.value.numpy(), leap.angles.codes.numpy(), leap.variance.numpy()


@pytest.mark.parametrize("leap", [VANILLA, FULL | {"memory_factor": 2}], ids=["vanilla", "full"])
def test_a_checkpoint_between_synchronisations_continues_on_any_number_of_ranks(tmp_path, leap):
    before = run_ranks(2, _save_and_go_on, leap, tmp_path)
    path, losses, _ = before[0]
    assert len(set(losses)) == STEPS - SAVED_AFTER
    undisturbed = [np.concatenate(parts) for parts in zip(*(held[:2] for _, _, held in before), strict=True)]
    for size in (1, 2, 3):
        after = run_ranks(size, _continue, leap, path)
        np.testing.assert_allclose(after[0][0], losses, rtol=1e-10)
        found = [np.concatenate(parts) for parts in zip(*(held[:2] for _, held in after), strict=True)]
        np.testing.assert_allclose(found[0], undisturbed[0], rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(found[1], undisturbed[1])
        for _, held in after:
            np.testing.assert_allclose(held[2], before[0][2][2], rtol=1e-10)
        if size == 2:  # the same number of ranks: the same run, bit for bit
            assert after[0][0] == losses
            np.testing.assert_array_equal(found[0], undisturbed[0])


def test_a_checkpoint_without_the_state_is_refused(tmp_path):
    path, _, _ = _save_without_leap(tmp_path)
    state = train_state(World(), VANILLA, tmp_path)
    with pytest.raises(InputError, match=r"leap\.angle is absent there and int16 49 here; leap, or .* was different"):
        state.load(path)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    path, _, _ = _save_and_go_on(World(), VANILLA, tmp_path)
    state = train_state(World(), VANILLA, tmp_path, counts=COUNTS[::-1].copy() + 3)
    with pytest.raises(InputError, match=r"leap\.angle is int16 49 there and int16 88 here; leap, or the number"):
        state.load(path)


def test_leap_may_be_turned_off_when_a_run_goes_on(tmp_path):
    path, _, _ = _save_and_go_on(World(), VANILLA, tmp_path)
    state = train_state(World(), None, tmp_path)
    state.load(path)
    assert state.step == SAVED_AFTER


def _save_without_leap(output):
    state = train_state(World(), None, output)
    advance(state, 2)
    return saved_state(state), None, None


def test_statistics_alone_change_no_bit_of_the_training(tmp_path):
    """LEAP off, and LEAP before its clouds begin, are the plain loss."""
    plain, tracking = (train_state(World(), leap, tmp_path) for leap in (None, VANILLA))
    tracking.leap.start_step = STEPS
    assert advance(plain, STEPS) == advance(tracking, STEPS)
    assert torch.equal(plain.classifier.weight, tracking.classifier.weight)
    assert tracking.leap.variance.isfinite().any()
