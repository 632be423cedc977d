"""SIGKILL at random moments changes nothing: weights, momentum, centres, rings and losses stay bit for bit the same."""

import random
import sys
from functools import cache

import pytest
from forked import Trainer
from kills import Tally, differing, disturbed, recorded, trained, under_torchrun
from scale import scale, seed
from tiny import tiny_recipe, write_tiny

RANKS = 2
RECIPES = {
    "all": {"classifier": {"sample_rate": 1.0}, "train": {}},
    "sampled": {"classifier": {"sample_rate": 0.3}, "train": {"accumulation": 2, "keep_checkpoints": 3}},
}
"""All classes in every update; a sample of them, with accumulation."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "train.rec")


def _config(data, output, name, epochs):
    keys = RECIPES[name]
    return tiny_recipe(
        data, output, classifier=keys["classifier"], train=keys["train"] | {"epochs": epochs, "resume": "auto"}
    )


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """Recipe and epochs -> (every tensor, every recorded number) at the end of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @cache
    def end(name, epochs):
        config = _config(data, folder / f"{name}{epochs}", name, epochs)
        started = Trainer(config, RANKS, config.output.with_suffix(".log"))
        assert started.wait() == [0] * RANKS, started.said()
        return trained(config), recorded(config)

    return end


def _kill(data, undisturbed, folder, way, kills, a_run=25, epochs=40):
    """Kill that often, ``a_run`` times in one run; the figures. Every complete run must equal the undisturbed one."""
    generator, tally = random.Random(seed()), Tally()
    while tally.kills < kills:
        name = list(RECIPES)[tally.runs % len(RECIPES)]
        config = _config(data, folder / f"run{tally.runs}", name, epochs)
        way(config, RANKS, generator, tally, min(a_run, kills - tally.kills))
        state, records = undisturbed(name, epochs)
        assert differing(state, trained(config)) == []
        assert recorded(config) == records
    return tally


def test_a_few_kills_change_nothing(data, undisturbed, tmp_path):
    _kill(data, undisturbed, tmp_path, disturbed, kills=8, a_run=4, epochs=10)


def test_torchrun_restarts_after_a_kill_with_no_hand(data, undisturbed, tmp_path):
    _kill(data, undisturbed, tmp_path, under_torchrun, kills=1, epochs=10)


@pytest.mark.faults
def test_many_kills_change_nothing(data, undisturbed, tmp_path, capsys):
    tally = _kill(data, undisturbed, tmp_path, disturbed, scale(quick=8, ci=150, release=1000))
    with capsys.disabled():
        print(f"\n{tally.line()}")
    assert tally.inside >= 0.15 * tally.kills


@pytest.mark.faults
def test_torchrun_restarts_after_many_kills_with_no_hand(data, undisturbed, tmp_path, capsys):
    tally = _kill(data, undisturbed, tmp_path, under_torchrun, scale(quick=1, ci=10, release=50))
    with capsys.disabled():
        print(f"\ntorchrun: {tally.line()}")
