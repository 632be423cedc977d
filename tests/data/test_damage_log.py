"""The set of damaged images: the same on every rank, in a file, within the budget, and kept by checkpoints."""

import json

import numpy as np
import pytest
import torch
from ranks import run_ranks

from facetrain.data.damage import Damaged
from facetrain.data.damage_log import DamageLog
from facetrain.data.loader import Batch
from facetrain.distributed import World
from facetrain.errors import RunError


def batch(*images):
    damaged = tuple(Damaged(i, f"train.rec record {i + 1} at byte {100 * i}", "cut short") for i in images)
    return Batch(torch.empty(0), np.empty(0, np.int64), damaged)


@pytest.fixture
def log(tmp_path):
    return DamageLog(tmp_path, 3, tmp_path / "train.rec")


def test_what_is_said_and_written(log, tmp_path):
    log.note([batch(), batch()])
    assert log.exchange(World()) is None
    assert not (tmp_path / "damaged_images.txt").exists()
    log.note([batch(7), batch(2, 7)])
    file = tmp_path / "damaged_images.txt"
    assert log.exchange(World()) == (
        f"warning: 2 unreadable images so far, of 3 allowed; see {file}; the first: train.rec record 3 at byte 200: "
        "cut short"
    )
    log.note([batch(2, 7)])  # the next epoch meets them again
    assert log.exchange(World()) is None
    assert len(log) == 2
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# Training images that could not be read")
    assert lines[1:] == ["2\ttrain.rec record 3 at byte 200\tcut short", "7\ttrain.rec record 8 at byte 700\tcut short"]
    assert [path.name for path in tmp_path.iterdir()] == ["damaged_images.txt"]


def test_past_the_budget_the_run_ends(log, tmp_path):
    log.note([batch(1, 2, 3)])
    assert "3 unreadable images so far, of 3 allowed" in log.exchange(World())
    log.note([batch(9)])
    with pytest.raises(RunError) as caught:
        log.exchange(World())
    assert str(caught.value) == (
        "4 unreadable images, and data.max_damaged allows 3: mend them, for which 'facetrain data check "
        f"{tmp_path / 'train.rec'}' looks through all, or raise data.max_damaged; see "
        f"{tmp_path / 'damaged_images.txt'}; the first: train.rec record 10 at byte 900: cut short"
    )
    assert len((tmp_path / "damaged_images.txt").read_text().splitlines()) == 5


def test_a_budget_of_none_ends_at_the_first(tmp_path):
    log = DamageLog(tmp_path, 0, tmp_path)
    log.note([batch(5)])
    with pytest.raises(RunError, match=r"^1 unreadable image, and data.max_damaged allows 0: mend "):
        log.exchange(World())


def test_a_checkpoint_keeps_the_count(log, tmp_path):
    log.note([batch(4, 1)])
    log.exchange(World())
    state = json.loads(json.dumps(log.state()))
    again = DamageLog(tmp_path / "other", 3, tmp_path)
    again.restore(state)
    assert again.state() == log.state()
    again.note([batch(1, 4)])
    assert again.exchange(World()) is None
    for one in (log, again):
        one.note([batch(6), batch(8)])
        with pytest.raises(RunError, match=r"^4 unreadable images, and data\.max_damaged allows 3"):
            one.exchange(World())


def test_a_file_that_cannot_be_written_is_said_and_no_more(tmp_path):
    log = DamageLog(tmp_path / "gone", 3, tmp_path)
    log.note([batch(0)])
    assert f"{tmp_path / 'gone' / 'damaged_images.txt'} cannot be written; the first" in log.exchange(World())


def on_a_rank(world, folder):
    log = DamageLog(folder, 4, folder / "train.rec")
    told = []
    for images in ((), (world.rank,), (0,), (10 + world.rank,), (world.rank * 20,)):
        log.note([batch(*images)])
        try:
            told.append((log.exchange(world), log.state()))
        except RunError as error:
            told.append((str(error), log.state()))
    return told


@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_knows_the_same_at_the_same_step(tmp_path, size):
    first, *rest = run_ranks(size, on_a_rank, tmp_path)
    assert all(told == first for told in rest)
    lines, states = zip(*first, strict=True)
    assert [len(state) for state in states] == [0, size, size, 2 * size, 3 * size - 1]
    assert lines[0] is None
    assert lines[1].startswith(f"warning: {size} unreadable images so far")
    assert lines[2] is None
    assert lines[-1].startswith(f"{3 * size - 1} unreadable images, and data.max_damaged allows 4")
