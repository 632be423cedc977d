"""Whole runs on small rendered sets: what they leave, and that stopping and resuming changes nothing."""

import json
import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from ranks import run_ranks

import facetrain.train
from facetrain import run
from facetrain.agreement import claimed
from facetrain.checkpoints import backbones
from facetrain.checkpoints.files import listed, read_manifest
from facetrain.config import Config
from facetrain.data.dataset import open_images
from facetrain.data.demo import write_demo
from facetrain.data.sampler import batch_indices
from facetrain.errors import InputError, LostRankError, RunError

PEOPLE, SIDE = 12, 24


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return write_demo(
        folder,
        people=PEOPLE,
        head=4,
        size=SIDE,
        held_out=6,
        held_out_images=5,
        seed=0,
        images_head=12,
        images_tail=4,
        pairs=40,
        workers=1,
    )


def _config(demo, output, **train):
    return Config.model_validate(
        {
            "output": output,
            "device": "cpu",
            "data": {"path": demo.train, "workers": 0, "augment": {"crop": 0.5, "color": 0.5}},
            "model": {"width": 4, "input_size": SIDE, "embedding_size": 8, "dropout": 0.1},
            "classifier": {"sample_rate": 0.5},
            "leap": {
                "variant": "vanilla",
                "head_threshold": 4,
                "start_epoch": min(1, train.get("epochs", 3) - 1),
                "sync_interval": 3,
            },
            "train": {"epochs": 3, "batch_size": 16, "log_every": 2, "checkpoint_every": 4, "threads": 1} | train,
            "evaluate": {"sets": [demo.pair_sets[0]], "every": 4},
        }
    )


def _records(output, kind):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def _tensors(output):
    state = {}
    for file in sorted(listed(output / "checkpoints")[-1].glob("*.safetensors")):
        from safetensors.torch import load_file

        state |= {f"{file.name}/{key}": tensor for key, tensor in load_file(file).items()}
    return state


@pytest.fixture(scope="module")
def finished(demo, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert run.train(_config(demo, output)) == 0
    return output


def test_what_a_run_leaves(finished, demo):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml",
        "versions.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "verification",
        "report.html",
        "leap",
    }
    steps = 3 * (demo.images // 16)
    training = _records(finished, "train")
    assert training[-1]["step"] == steps
    assert {"epoch", "loss", "lr", "images_per_second", "memory_gib", "seconds"} <= training[0].keys()
    assert [line["step"] for line in _records(finished, "verification")] == [*range(4, steps, 4), steps]
    assert json.loads((finished / "versions.json").read_text())["torch"] == torch.__version__
    backbone, model = backbones.load_backbone(finished)
    assert model.embedding_size == 8
    assert backbone(torch.zeros(1, 3, SIDE, SIDE)).isfinite().all()
    assert list((finished / "tensorboard").iterdir())


def test_what_a_run_with_feature_clouds_leaves(finished, demo):
    per_epoch = demo.images // 16
    spreads = _records(finished, "leap")
    assert spreads[-1]["step"] == 3 * per_epoch
    assert 0 < spreads[-1]["sigma_head"] < 1
    assert 0 < spreads[-1]["sigma_tail"] < 1
    assert any(line["cloud_share"] > 0 and line["cloud_sigma"] > 0 for line in spreads)
    assert all(line["cloud_share"] == 0 for line in spreads if line["step"] <= per_epoch)
    angles = _records(finished, "angles")
    assert [line["step"] for line in angles] == [per_epoch, 2 * per_epoch, 3 * per_epoch]
    assert sum(angles[-1]["head"]) == 4 * 12  # every ring is full
    assert sum(angles[-1]["tail"]) == (PEOPLE - 4) * 4
    maps = sorted((finished / "leap").iterdir())
    assert [path.name for path in maps] == [f"map_{step:08d}.npz" for step in (per_epoch, 3 * per_epoch)]
    with np.load(maps[1]) as drawn:
        assert set(drawn["images"][drawn["head"]]) == {12}
        assert set(drawn["images"][~drawn["head"]]) == {4}
        np.testing.assert_allclose(np.linalg.norm(drawn["embeddings"], axis=1), 1, rtol=1e-5)
    assert "Feature clouds" in (finished / "report.html").read_text()


def test_stopped_and_resumed_equals_undisturbed_bit_for_bit(finished, demo, tmp_path, monkeypatch):
    """SIGTERM in the middle of an epoch: saved, code 143; going on gives the same weights, momentum and numbers."""
    config = _config(demo, tmp_path / "run", resume="auto")
    steps = []
    step = run.train_step

    def stopping(*args):
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(run, "train_step", stopping)
    assert run.train(config) == 128 + signal.SIGTERM
    assert listed(config.output / "checkpoints")[-1].name == "step_00000005"
    assert not (config.output / "report.html").exists()
    monkeypatch.setattr(run, "train_step", step)
    assert run.train(config) == 0
    expected, found = _tensors(finished), _tensors(config.output)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    for kind in ("train", "verification"):
        numbers = [
            [
                (line["step"], line.get("loss"), line.get("accuracy"))
                for line in _records(output, kind)
                if line["step"] > 6  # the interval 5..6 was cut in two
            ]
            for output in (finished, config.output)
        ]
        assert numbers[0] == numbers[1]


def test_a_finished_run_is_only_verified_again(finished, demo, capsys):
    kept = ("versions.json", "config.yaml", "metrics.jsonl")
    before, files = _tensors(finished), [(finished / name).read_text() for name in kept]
    assert run.train(_config(demo, finished, resume="auto")) == 0
    after = _tensors(finished)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert files == [(finished / name).read_text() for name in kept]
    assert "it is only verified again" in capsys.readouterr().err


def test_fewer_epochs_than_were_made_are_refused(finished, demo):
    with pytest.raises(InputError, match=r"train\.epochs 2 ends at step 10, but .* has made 15 already"):
        run.train(_config(demo, finished, resume="auto", epochs=2))


@pytest.mark.skipif(sys.platform != "linux", reason="a killed worker is told by SIGCHLD")
def test_a_killed_decoding_worker_is_an_input_error(demo, tmp_path, monkeypatch):
    config = _config(demo, tmp_path / "run", epochs=50).model_dump(mode="json")
    config["data"]["workers"] = 1
    step, killed = run.train_step, []

    def killing(*args):
        if not killed:
            killed.extend(multiprocessing.active_children())
            os.kill(killed[0].pid, signal.SIGKILL)
        time.sleep(0.05)
        return step(*args)

    monkeypatch.setattr(run, "train_step", killing)
    with pytest.raises(LostRankError, match=r"a decoding worker died: .*lower data\.workers"):
        run.train(Config.model_validate(config))


def test_an_older_checkpoint_is_taken_where_the_newest_is_damaged(demo, tmp_path, capsys):
    config = _config(demo, tmp_path / "run", resume="auto")
    assert run.train(config) == 0
    newest = listed(config.output / "checkpoints")[-1]
    (newest / "backbone.safetensors").write_bytes(b"gone")
    assert run.train(config) == 0
    err = capsys.readouterr().err
    assert "backbone.safetensors is damaged" in err
    assert "going on from" in err
    assert backbones.load_backbone(config.output)


def _spoil(monkeypatch, *steps):
    """Make the loss of some updates NaN, as if a weight had overflowed in them."""
    original = facetrain.train.PartialFC.loss

    def spoiled(classifier, embeddings, labels, cloud=None):
        loss = original(classifier, embeddings, labels, cloud)
        calls.append(1)
        return loss * float("nan") if len(calls) in steps else loss

    calls = []
    monkeypatch.setattr(facetrain.train.PartialFC, "loss", spoiled)


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(demo, tmp_path, monkeypatch):
    config = _config(demo, tmp_path / "run")
    _spoil(monkeypatch, 6)
    with pytest.raises(RunError, match=r"the loss is nan at step 6, images in .*; the last good .*step_00000004"):
        run.train(config)
    assert [path.name for path in listed(config.output / "checkpoints")] == ["step_00000004"]
    (entry,) = json.loads((config.output / "nonfinite.json").read_text())
    _, images = batch_indices(len(open_images(config.data.path)), config.train.batch_size, config.seed, 5)
    assert entry["step"] == 6
    assert entry["images"] == images.tolist()
    assert len(entry["where"]) == len(entry["people"]) == config.train.batch_size


def test_updates_that_are_not_finite_can_be_left_out(demo, tmp_path, monkeypatch, capsys):
    """Only the update is missing: weights stay finite, steps go on, the manifest counts them over a resume."""
    settings = _config(demo, tmp_path / "run", resume="auto").model_dump(mode="json")
    settings["train"] |= {"nonfinite": "skip", "max_skipped": 2, "epochs": 2}
    _spoil(monkeypatch, 1, 6)
    assert run.train(Config.model_validate(settings)) == 0
    assert "update left out (2 of 2 allowed)" in capsys.readouterr().err
    manifest = read_manifest(listed(tmp_path / "run" / "checkpoints")[-1])
    assert manifest["skipped"] == [1, 6]
    assert all(tensor.isfinite().all() for tensor in _tensors(tmp_path / "run").values())
    settings["train"]["epochs"] = 3
    _spoil(monkeypatch, 2)
    with pytest.raises(RunError, match=r"step 12, .* more than train.max_skipped 2 were left out"):
        run.train(Config.model_validate(settings))
    assert [entry["step"] for entry in json.loads((tmp_path / "run" / "nonfinite.json").read_text())] == [1, 6, 12]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train": {"resume": "never"}}, "already holds a run"),
        ({"seed": 1}, "seed is 1, but checkpoint"),
        ({"model": {"width": 8}}, r"model\.width is 8, but checkpoint .* was made with 4"),
        ({"train": {"batch_size": 8}}, r"train\.batch_size is 8"),
        ({"data": {"num_classes": 13}}, "data.num_classes is 13, but .* has 12 identities"),
        ({"train": {"batch_size": 1000}}, "fewer than one batch"),
        ({"train": {"batch_size": 16, "accumulation": 16}}, "batch norm needs 2"),
        ({"evaluate": {"sets": ["missing.bin"]}}, "missing.bin cannot be read"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(finished, demo, keys, message):
    settings = _config(demo, finished, resume="auto").model_dump(mode="json")
    for section, values in keys.items():
        settings[section] = settings[section] | values if isinstance(values, dict) else values
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(InputError, match=message):
        run.train(Config.model_validate(settings))
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


def test_one_person_is_refused(tmp_path):
    from facetrain.data.images import encode_jpeg
    from facetrain.data.record_writer import RecordWriter

    with RecordWriter(tmp_path / "train.rec", SIDE) as writer:
        for _ in range(40):
            writer.write(0, encode_jpeg(np.zeros((SIDE, SIDE, 3), np.uint8)))
    config = Config.model_validate({"output": tmp_path / "run", "data": {"path": tmp_path / "train.rec"}})
    with pytest.raises(InputError, match="has 1 person"):
        run.train(config)


def test_epochs_and_learning_rate_may_change_on_resuming(finished, demo, tmp_path, capsys):
    import shutil

    output = tmp_path / "longer"
    shutil.copytree(finished, output)
    config = _config(demo, output, resume="auto", epochs=4).model_dump(mode="json")
    config["optim"]["lr"] = 0.01
    assert run.train(Config.model_validate(config)) == 0
    err = capsys.readouterr().err
    assert "changed since that checkpoint: train.epochs from 3 to 4" in err
    assert "changed since that checkpoint: optim.lr from 0.1 to 0.01" in err


def _train_on_ranks(world, config, stopped_rank=None):
    """The run as each rank sees it; ``stopped_rank`` gets SIGTERM in its third update, the others nothing."""
    inputs = run.preflight.check(config, world.size)
    step = run.train_step

    def stopping(state, *args):
        if state.step == 2 and world.rank == stopped_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, *args)

    run.train_step = stopping
    try:
        with run.StopRequest().listening() as stop, claimed(config.output, world):
            return run._Run(config, inputs, world, stop).train()
    finally:
        run.train_step = step


def test_three_ranks_one_of_which_is_stopped_resume_bit_for_bit(demo, tmp_path):
    undisturbed = _config(demo, tmp_path / "undisturbed", epochs=2)
    stopped = _config(demo, tmp_path / "stopped", epochs=2, resume="auto")
    assert run_ranks(3, _train_on_ranks, undisturbed) == [0, 0, 0]
    assert run_ranks(3, _train_on_ranks, stopped, 1) == [128 + signal.SIGTERM] * 3
    assert [path.name for path in listed(stopped.output / "checkpoints")] == ["step_00000003"]
    assert run_ranks(3, _train_on_ranks, stopped) == [0, 0, 0]
    expected, found = _tensors(undisturbed.output), _tensors(stopped.output)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_signal_during_the_agreement_is_not_lost(demo, tmp_path, monkeypatch):
    config = _config(demo, tmp_path / "run")
    largest = run.World.largest
    calls = []

    def interrupted(world, number):
        calls.append(number)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return largest(world, number)

    monkeypatch.setattr(run.World, "largest", interrupted)
    assert run.train(config) == 128 + signal.SIGTERM


@pytest.mark.parametrize("size", [2, 3])
def test_several_ranks_train_verify_and_report(demo, tmp_path, size):
    """Batch norm sees a rank's own images, so numbers differ from one rank's; the order of images does not."""
    config = _config(demo, tmp_path / "run", epochs=2, accumulation=2)
    assert run_ranks(size, _train_on_ranks, config) == [0] * size
    assert (config.output / "report.html").is_file()
    shards = sorted(listed(config.output / "checkpoints")[-1].glob("classifier-*"))
    assert len(shards) == size
    losses = [line["loss"] for line in _records(config.output, "train")]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("keys", [{"precision": "bf16"}, {"accumulation": 4}])
def test_other_ways_to_train(demo, tmp_path, keys):
    assert run.train(_config(demo, tmp_path / "run", epochs=1, **keys)) == 0


@pytest.mark.slow
def test_compiled_starts_with_the_same_losses(demo, tmp_path):
    losses = []
    for compiled in (False, True):
        settings = _config(demo, tmp_path / str(compiled), epochs=1, log_every=1).model_dump(mode="json")
        settings["model"] |= {"compile": compiled, "dropout": 0}
        assert run.train(Config.model_validate(settings)) == 0
        losses.append([line["loss"] for line in _records(tmp_path / str(compiled), "train")])
    assert losses[0] != losses[1]  # it was compiled
    np.testing.assert_allclose(losses[1][:3], losses[0][:3], rtol=1e-4)
