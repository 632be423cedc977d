"""A profile of a run: the table adds up to the time that passed, and the trace can be opened."""

import gzip
import json
import time

import pytest

from facetrain.distributed import World
from facetrain.profiling import STEPS, Profile

PAUSES = {"backbone": 0.002, "gathering embeddings": 0.0, "logits": 0.001, "backward": 0.004, "update": 0.0, "LEAP": 0}


def test_the_table_adds_up_and_the_trace_has_its_phases(tmp_path):
    world = World()
    profile = Profile(tmp_path, world, start=3)
    table, measured = None, []
    with profile.listening():
        for step in range(4, 4 + profile.updates):
            for phase, pause in PAUSES.items():
                world.pulse.beat(phase=phase)
                time.sleep(pause)
            world.pulse.beat(phase="records")
            measured.append(time.perf_counter())
            table = profile.after(step) or table
            world.pulse.beat(phase="waiting for images")
    found = json.loads((tmp_path / "profile.json").read_text())["seconds"]
    assert list(found) == ["data wait", "backbone", "gather", "logits", "backward", "update", "LEAP", "other"]
    passed = measured[9 + STEPS] - measured[9]
    assert sum(found.values()) * STEPS == pytest.approx(passed, rel=0.02)
    assert found["backbone"] >= 0.002
    assert found["backward"] >= 0.004
    assert table == f"{(tmp_path / 'profile.txt').read_text()}written to {tmp_path}"
    assert table.count("%") == 8
    with gzip.open(tmp_path / "trace_rank00000.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("facetrain: backward") == 5
    assert world.pulse.at_phase is None


def test_a_run_that_ends_early_leaves_nothing_running(tmp_path):
    world = World()
    profile = Profile(tmp_path, world, start=0)
    with profile.listening():
        for step in range(1, profile.updates):
            world.pulse.beat(phase="backbone")
            assert profile.after(step) is None
    assert list(tmp_path.iterdir()) == []
