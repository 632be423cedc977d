import statistics
import time

import numpy as np
import pytest
from ranks import run_ranks

from facetrain.distributed import World
from facetrain.watch.straggler import WINDOW, Paces, Slowness


def simulated(rng, ranks, steps, slow=None, factor=1.0):
    """(steps, ranks) seconds: 80 ms, log-normal noise, and now and then a step that waits for a disk."""
    seconds = 0.08 * np.exp(rng.normal(0, 0.15, (steps, ranks)))
    hiccup = rng.random((steps, ranks)) < 0.03
    seconds += hiccup * rng.exponential(0.5, (steps, ranks))
    if slow is not None:
        seconds[:, slow] *= factor
    return seconds


def judged(seconds, window):
    """(step, rank, factor) of everybody that is named, with ranks compared every ``window`` steps."""
    slowness, named = Slowness(), []
    for end in range(window, len(seconds) + 1, window):
        medians = np.median(seconds[end - window : end], axis=0).tolist()
        named += [(end, rank, factor) for rank, factor, _ in slowness.judge(medians, window)]
    return named


@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
def test_nobody_is_named_in_2000_clean_steps(ranks):
    rng = np.random.default_rng(ranks)
    for _ in range(20):
        assert judged(simulated(rng, ranks, 2000), WINDOW) == []


@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
def test_a_rank_at_half_speed_is_named_within_50_steps(ranks):
    rng = np.random.default_rng(ranks)
    for slow in range(min(ranks, 8)):
        for first in range(0, WINDOW, 3):  # the step of a window at which it becomes slow
            seconds = np.concatenate([simulated(rng, ranks, 100 + first), simulated(rng, ranks, 60, slow, 2.0)])
            ((end, rank, factor),) = judged(seconds, WINDOW)
            assert rank == slow
            assert end - (100 + first) <= 50
            assert 1.6 < factor < 2.5


def test_named_once_and_again_after_it_has_recovered():
    slowness = Slowness()
    found = [slowness.judge([0.1, 0.1, own], 20) for own in (0.3, 0.3, 0.3, 0.1, 0.3, 0.3)]
    assert found == [[], [(2, pytest.approx(3), 40)], [], [], [], [(2, pytest.approx(3), 40)]]


def test_what_is_no_straggler():
    for seconds in ([0.1, 0.13], [0.001, 0.004], [0.1, 0.2, 0.2, 0.2]):  # too little, too short, one quick rank
        slowness = Slowness()
        assert [slowness.judge(seconds, 50) for _ in range(5)] == [[]] * 5


def test_one_long_window_is_not_enough():
    slowness = Slowness()
    assert slowness.judge([0.1, 0.3], 500) == []
    assert slowness.judge([0.1, 0.3], 500) == [(1, pytest.approx(3), 1000)]


def _trained(world, steps, slow):
    """What is said in which step of a toy trainer, whose images take 10 ms, of one rank from step 12 on 25 ms."""
    paces, said = Paces(world), []
    for step in range(1, steps + 1):
        paces.begin()
        time.sleep(0.025 if world.rank == slow and step > 12 else 0.01)
        world.largest(step)
        time.sleep(0.002)  # what follows the first collective is not its own
        world.largest(step)
        if step % 5 == 0:
            said += [(step, line) for line in paces.exchange()]
    return said


def test_a_slow_rank_of_a_toy_trainer_is_named_to_all():
    first, second = run_ranks(2, _trained, 80, 1)
    assert first == second
    ((step, line),) = first
    assert step <= 12 + 50
    assert line.startswith("rank 1 on ")
    assert "x as long as the others for images and forward pass over the last 40 steps" in line


def test_a_clean_toy_trainer_says_nothing():
    assert run_ranks(2, _trained, 100, None) == [[], []]


@pytest.mark.slow
def test_nor_does_a_long_one():
    assert run_ranks(2, _trained, 2000, None) == [[], []]


def test_the_time_of_a_step_ends_at_its_first_collective():
    (medians, count) = run_ranks(2, _times)[0]
    assert count == WINDOW
    assert 0.02 < medians < 0.2


def _times(world):
    paces = Paces(world)
    for _ in range(WINDOW):
        paces.begin()
        time.sleep(0.02)
        world.largest(1)
        time.sleep(0.3 * world.rank / WINDOW)
        world.largest(1)
    return statistics.median(paces._times), len(paces._times)


def test_alone_nothing_is_measured():
    paces = Paces(World())
    for _ in range(3 * WINDOW):
        paces.begin()
        assert paces.exchange() == []
