"""The smallest data, ranks without classes, short batches; and numbers that are not finite, on whichever rank."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Trainer
from kills import trained
from tiny import SIDE, tiny_recipe, write_tiny

from facetrain import run
from facetrain.checkpoints.files import listed
from facetrain.config import Config
from facetrain.data import loader
from facetrain.data.images import encode_jpeg
from facetrain.data.record_writer import RecordWriter
from facetrain.data.sampler import batch_indices
from facetrain.errors import InputError

RANKS, PLANTED = 2, 5
"""The number is planted before update 6, between two checkpoints."""
MOST_SKIPPED = 3

linux = pytest.mark.skipif(sys.platform != "linux", reason="forks ranks")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "train.rec")


def _spoil(rank, what, value):
    """In rank 1 alone: put ``value`` where ``what`` says, before update PLANTED + 1.

    Momentum in rank 0 alone, whose backbone and optimiser are what a checkpoint holds.
    """
    if rank != (0 if what == "momentum" else 1):
        return
    update = run.train_step

    def spoiling(state, *args):
        if state.step != PLANTED:
            return update(state, *args)
        hook = None
        if what == "classifier":
            state.classifier.weight.detach()[-1, 0] = value
        elif what == "backbone":
            state.backbone.conv1.weight.detach()[0, 0, 0, 0] = value
        elif what == "momentum":
            state.optimizer.state[state.backbone.conv1.weight]["momentum_buffer"].fill_(value)
        elif what == "one gradient":
            hook = state.backbone.fc.weight.register_hook(lambda gradient: gradient + value)
        else:
            hook = state.backbone.features.register_forward_hook(lambda module, inputs, output: output + value)
        done = update(state, *args)
        if hook is not None and what != "all embeddings from here on":
            hook.remove()
        return done

    run.train_step = spoiling


def _train(data, output, policy, setup, *args, lr=0.02, rate=1.0):
    """The run's recipe, exit codes and what it printed."""
    train = {"epochs": 5, "log_every": 7, "nonfinite": policy, "batch_size": 16, "checkpoint_every": 2, "threads": 1}
    if policy == "skip":
        train["max_skipped"] = MOST_SKIPPED
    config = tiny_recipe(data, output, train=train, optim={"lr": lr}, classifier={"sample_rate": rate})
    ranks = Trainer(config, RANKS, output.with_suffix(".log"), setup, *args)
    codes = ranks.wait()
    return config, codes, ranks.log.read_text()


def _check_end(config, codes, said, step, what):
    """Every rank ended at ``step`` with one line that names it; nothing that is not finite lies in a checkpoint."""
    lines = [line for line in said.splitlines() if "error: " in line]
    assert codes == [1] * RANKS, said
    assert len(lines) == RANKS
    assert "Traceback" not in said
    pattern = rf"{what} (nan|inf|-inf) at step {step}, images in .*; the last good checkpoint is .*/step_0000000[24]; "
    assert all(re.search(pattern, line) for line in lines), lines
    assert {path.name for path in listed(config.output / "checkpoints")} == {"step_00000002", "step_00000004"}
    _check_sound(config)


def _check_sound(config):
    """The newest checkpoint has nothing in it that is not finite; classes without a variance yet have none."""
    assert all(
        tensor.isfinite().all() for name, tensor in trained(config).items() if name not in ("variances", "target")
    )


def _check_written_down(config, steps):
    entries = json.loads((config.output / "nonfinite.json").read_text())
    assert [entry["step"] for entry in entries] == steps
    for entry in entries:
        _, images = batch_indices(64, config.train.batch_size, config.seed, entry["step"] - 1)
        assert entry["images"] == images.tolist()
        assert len(entry["people"]) == len(entry["where"]) == len(images)


NAN, INF = float("nan"), float("inf")
LASTING = [("classifier", NAN), ("classifier", INF), ("backbone", NAN), ("backbone", INF)]
PASSING = [("one gradient", INF), ("embeddings", NAN)]
FOREVER = ("all embeddings from here on", NAN)


def _stop(data, output, what, value):
    config, codes, said = _train(data, output, "stop", _spoil, what, value)
    _check_end(config, codes, said, PLANTED + 1, "the gradient's norm is" if what == "one gradient" else "the loss is")
    _check_written_down(config, [PLANTED + 1])


def _skip(data, output, what, value):
    config, codes, said = _train(data, output, "skip", _spoil, what, value)
    if (what, value) in PASSING:
        assert codes == [0] * RANKS, said
        assert said.count("update left out (1 of 3 allowed)") == 1
        _check_written_down(config, [PLANTED + 1])
        assert int(trained(config)["step"]) == 20
        return
    assert codes == [1] * RANKS
    assert "Traceback" not in said
    left_out = [PLANTED + 1 + number for number in range(MOST_SKIPPED + 1)]
    if what == "classifier":  # found while the checkpoint of step 6 is written, before that of step 8 begins
        assert said.count("the weights are not finite after step 6; the last good checkpoint is") == RANKS
        known = len(json.loads((config.output / "nonfinite.json").read_text()))
        assert 1 <= known <= 3
        _check_written_down(config, left_out[:known])
        assert {path.name for path in listed(config.output / "checkpoints")} == {"step_00000002", "step_00000004"}
    else:  # rank 0's backbone, which is the one that is saved, stays sound as nothing is added to it
        assert said.count(f"more than train.max_skipped {MOST_SKIPPED} were left out") == RANKS
        _check_written_down(config, left_out)
        _check_sound(config)


@linux
def test_a_number_that_is_not_finite_in_one_ranks_shard_stops_all(data, tmp_path):
    _stop(data, tmp_path / "run", "classifier", NAN)


@linux
def test_an_update_that_is_not_finite_on_one_rank_can_be_left_out(data, tmp_path):
    _skip(data, tmp_path / "run", "embeddings", NAN)


@linux
@pytest.mark.faults
@pytest.mark.parametrize("policy", [_stop, _skip])
@pytest.mark.parametrize(("what", "value"), [*LASTING, *PASSING, FOREVER])
def test_what_is_not_finite_on_one_rank_ends_in_good_order(data, tmp_path, policy, what, value):
    policy(data, tmp_path / "run", what, value)


@linux
@pytest.mark.faults
def test_an_absurd_learning_rate_stops_the_run(data, tmp_path):
    config, codes, said = _train(data, tmp_path / "run", "stop", None, lr=1e30)
    assert codes == [1] * RANKS
    lines = [line for line in said.splitlines() if "error: " in line]
    assert len(lines) == RANKS
    assert all("at step 2, " in line and "there is no checkpoint yet" in line for line in lines), lines
    assert not listed(config.output / "checkpoints")
    _check_written_down(config, [2])


@linux
@pytest.mark.faults
def test_what_no_update_has_used_yet_is_not_saved(data, tmp_path):
    """A damaged momentum of the backbone reaches the weights, but no loss before the next update; saving looks."""
    config, codes, said = _train(data, tmp_path / "run", "stop", _spoil, "momentum", NAN)
    _check_end(config, codes, said, PLANTED + 2, "the loss is")
    assert said.count("step_00000004; ") == RANKS


@pytest.mark.parametrize("images", [1, 40])
def test_one_person_is_refused_whatever_the_number_of_images(tmp_path, images):
    with RecordWriter(tmp_path / "train.rec", SIDE) as writer:
        for _ in range(images):
            writer.write(0, encode_jpeg(np.zeros((SIDE, SIDE, 3), np.uint8)))
    config = Config.model_validate({"output": tmp_path / "run", "data": {"path": tmp_path / "train.rec"}})
    with pytest.raises(InputError, match="has 1 person; telling people apart needs at least 2"):
        run.train(config)
    assert not (tmp_path / "run").exists()


def _small(data, output, **train):
    keys = {"epochs": 12, "batch_size": 2, "log_every": 1, "checkpoint_every": 100, "threads": 1} | train
    return tiny_recipe(data, output, leap={"variant": "off"}, train=keys)


def test_two_people_with_one_image_each_can_be_trained(tmp_path):
    config = _small(write_tiny(tmp_path / "train.rec", people=2, images=2), tmp_path / "run")
    assert run.train(config) == 0
    assert all(tensor.isfinite().all() for tensor in trained(config).values())


def test_the_last_short_batch_is_left_out_and_is_another_one_in_every_epoch(tmp_path, monkeypatch):
    config = _small(write_tiny(tmp_path / "train.rec", people=3, images=17), tmp_path / "run", batch_size=16)
    drawn = {}

    def noting(n, batch_size, seed, step):
        epoch, images = batch_indices(n, batch_size, seed, step)
        drawn.setdefault(epoch, []).extend(images.tolist())
        return epoch, images

    monkeypatch.setattr(loader, "batch_indices", noting)
    assert run.train(config) == 0
    assert {epoch: len(set(images)) for epoch, images in drawn.items()} == dict.fromkeys(range(12), 16)
    assert all(len(images) == 16 for images in drawn.values())
    left_out = {(set(range(17)) - set(images)).pop() for images in drawn.values()}
    assert len(left_out) > 3


@linux
def test_more_ranks_than_people(tmp_path):
    """Of three ranks one has no class: it trains, saves, and goes on from what it saved."""
    data = write_tiny(tmp_path / "train.rec", people=2, images=24)
    leap = {"variant": "vanilla", "head_threshold": 12, "start_epoch": 1, "sync_interval": 3}
    train = {"batch_size": 12, "log_every": 1, "checkpoint_every": 2, "threads": 1, "resume": "auto"}
    for epochs in (3, 5):
        config = tiny_recipe(data, tmp_path / "run", leap=leap, train=train | {"epochs": epochs})
        ranks = Trainer(config, 3, tmp_path / "log")
        assert ranks.wait() == [0, 0, 0], ranks.said()
    assert "going on from" in Path(tmp_path / "log").read_text()
    state = trained(config)
    assert len(state["classifier weight"]) == len(state["centres"]) == 2
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert torch.equal(state["seen"], torch.ones(2, dtype=torch.bool))
