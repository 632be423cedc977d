"""LEAP's state in checkpoints: taken between two synchronisations, continued by another number of ranks."""

import numpy as np
import pytest
import torch
from ranks import run_ranks
from test_train_ranks import FULL, GLOBAL, VANILLA, D, Toy, _config, _micro_batches

from facetrain.classifier.partial_fc import PartialFC
from facetrain.data.loader import Batch
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.longtail.leap import Leap
from facetrain.train import TrainState, train_step

CLASSES, SAVED_AFTER, STEPS = 13, 8, 20  # every third step synchronises: two steps are pending
COUNTS = 2 + np.arange(CLASSES) % 5
ABOUT = {"config": {}, "num_classes": CLASSES, "num_images": 100}


def _state(world, leap, output, counts=COUNTS):
    config = _config("arcface", 0.5, 2, leap=leap).model_copy(update={"output": output})
    backbone = Toy()
    return TrainState(
        config,
        world,
        backbone,
        world.data_parallel(backbone),
        torch.optim.SGD(backbone.parameters(), 0.1, 0.9),
        PartialFC(len(counts), D, config.classifier, config.optim, world, 0, torch.float64),
        Leap(config.leap, counts, D, world, 0, 0, 3, torch.float64),
    )


def _advance(state, stop):
    losses = []
    while state.step < stop:
        own = state.world.rows_of(GLOBAL)
        micros = _micro_batches(state.step, state.config.train.accumulation, CLASSES)
        batches = [Batch(torch.from_numpy(images[own.start : own.stop]), labels) for images, labels in micros]
        losses.append(train_step(state, batches, 0.1).item())
    return losses


def _save_and_go_on(world, leap, output):
    state = _state(world, leap, output)
    _advance(state, SAVED_AFTER)
    assert len(state.leap.pending)
    path = state.save(ABOUT)
    return path, _advance(state, STEPS), _held(state)


def _continue(world, leap, path):
    state = _state(world, leap, path.parent.parent)
    state.load(path)
    return _advance(state, STEPS), _held(state)


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
    state = _state(World(), VANILLA, tmp_path)
    with pytest.raises(InputError, match="holds no leap state; leap in the recipe was different when it was made"):
        state.load(path)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    path, _, _ = _save_and_go_on(World(), VANILLA, tmp_path)
    state = _state(World(), VANILLA, tmp_path, counts=COUNTS[::-1].copy() + 3)
    with pytest.raises(InputError, match=r"angle has \d+ slots, these data need \d+: its classes have other numbers"):
        state.load(path)


def test_leap_may_be_turned_off_when_a_run_goes_on(tmp_path):
    path, _, _ = _save_and_go_on(World(), VANILLA, tmp_path)
    state = _state(World(), None, tmp_path)
    state.load(path)
    assert state.step == SAVED_AFTER


def _save_without_leap(output):
    state = _state(World(), None, output)
    _advance(state, 2)
    return state.save(ABOUT), None, None


def test_statistics_alone_change_no_bit_of_the_training(tmp_path):
    """LEAP off, and LEAP before its clouds begin, are the plain loss."""
    plain, tracking = (_state(World(), leap, tmp_path) for leap in (None, VANILLA))
    tracking.leap.start_step = STEPS
    assert _advance(plain, STEPS) == _advance(tracking, STEPS)
    assert torch.equal(plain.classifier.weight, tracking.classifier.weight)
    assert tracking.leap.variance.isfinite().any()
