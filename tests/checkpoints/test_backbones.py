import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_states import saved_state
from ranks import run_ranks

from facetrain.checkpoints import backbones
from facetrain.checkpoints.files import listed, newest_good, verify
from facetrain.checkpoints.state import all_finite
from facetrain.config import Config
from facetrain.distributed import World
from facetrain.errors import InputError, RunError
from facetrain.train import TrainState, build_state

CLASSES = 13
COUNTS = np.arange(2, 2 + CLASSES)  # training images of each class
FILES = ["backbone.safetensors", "optimizer.safetensors", "classifier-00000-of-00001.safetensors"]


def _config(output, optim="sgd", **model):
    sizes = {"width": 4, "input_size": 16, "embedding_size": 8}
    return Config.model_validate(
        {"output": output, "data": {"path": "unused"}, "model": sizes | model, "optim": {"name": optim}}
    )


def _about(config):
    return {"config": config.model_dump(mode="json"), "num_classes": CLASSES, "num_images": 100}


def _trained_state(config, world, steps=2):
    """A state whose every tensor has moved: gradients are noise, the same on every rank."""
    state = build_state(config, COUNTS, world)
    generator = torch.Generator().manual_seed(0)
    own = state.classifier.classes
    for _ in range(steps):
        for parameter in state.backbone.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        state.optimizer.step()
        grad = torch.randn((CLASSES, config.model.embedding_size), generator=generator)[own.start : own.stop]
        state.classifier.weight.grad = grad
        state.classifier.step(0.1)
        state.step += 1
    return state


def _everything(state: TrainState) -> dict[str, torch.Tensor]:
    optimizer = {
        f"{name}/{key}": value
        for name, parameter in state.backbone.named_parameters()
        for key, value in state.optimizer.state.get(parameter, {}).items()
    }
    return {**state.backbone.state_dict(), **optimizer}


def _save(world, config):
    state = _trained_state(config, world)
    path = saved_state(state, _about(config))
    return str(path), {k: v.clone() for k, v in state.classifier.sharded_state().items()}, _everything(state)


def _load(world, config, path):
    state = build_state(config, COUNTS, world)
    state.load(path)
    return state.step, dict(state.classifier.sharded_state()), _everything(state)


@pytest.mark.parametrize(("before", "after", "optim"), [(1, 1, "adamw"), (2, 3, "adamw"), (3, 1, "sgd"), (1, 2, "sgd")])
def test_any_number_of_ranks_reads_what_any_other_wrote(tmp_path, before, after, optim):
    config = _config(tmp_path / "run", optim)
    saved = run_ranks(before, _save, config)
    loaded = run_ranks(after, _load, config, tmp_path / "run" / "checkpoints" / "step_00000002")
    for name in saved[0][1]:
        written = torch.cat([shards[name] for _, shards, _ in saved])
        assert len(written) == CLASSES
        assert torch.equal(written, torch.cat([shards[name] for _, shards, _ in loaded]))
    for step, _, everything in loaded:
        assert step == 2
        assert everything.keys() == saved[0][2].keys()
        assert len(everything) > 100
        for name, tensor in everything.items():
            assert torch.equal(tensor, saved[0][2][name]), name


@pytest.fixture
def run(tmp_path):
    """A run's folder with checkpoints of steps 2 and 3."""
    config = _config(tmp_path / "run")
    state = _trained_state(config, World())
    saved_state(state, _about(config))
    state.step = 3
    saved_state(state, _about(config))
    return config.output


def test_only_the_newest_are_kept_and_nothing_else_lies_about(run):
    config = _config(run)
    state = _trained_state(config, World(), steps=4)
    saved_state(state, _about(config))
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")] == []
    assert [path.name for path in listed(run / "checkpoints")] == ["step_00000003", "step_00000004"]


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_as_many_are_kept_as_asked(tmp_path, keep):
    config = Config.model_validate(_config(tmp_path / "run").model_dump() | {"train": {"keep_checkpoints": keep}})
    state = _trained_state(config, World())
    for step in range(6):
        state.step = step
        saved_state(state, _about(config))
        steps = [int(path.name[-8:]) for path in listed(config.output / "checkpoints")]
        assert steps == list(range(max(0, step - keep + 1), step + 1))


def _flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut_short(file):
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [_flip_a_bit, _cut_short, Path.unlink])
def test_damage_is_named_and_the_older_checkpoint_is_taken(run, name, damage):
    newest = run / "checkpoints" / "step_00000003"
    damage(newest / name)
    with pytest.raises(InputError, match=name):
        verify(newest)
    good, problems = newest_good(run / "checkpoints")
    assert good.name == "step_00000002"
    assert len(problems) == 1
    assert name in problems[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99, "files": {}}', '{"files": 3}', "\0"])
def test_a_damaged_manifest_is_an_input_error(run, content):
    (run / "checkpoints" / "step_00000003" / "manifest.json").write_text(content)
    with pytest.raises(InputError):
        verify(run / "checkpoints" / "step_00000003")
    assert newest_good(run / "checkpoints")[0].name == "step_00000002"


def test_an_unfinished_checkpoint_does_not_count(run):
    unfinished = run / "checkpoints" / ".step_00000009.writing"
    shutil.copytree(run / "checkpoints" / "step_00000003", unfinished)
    assert newest_good(run / "checkpoints")[0].name == "step_00000003"


def test_backbone_comes_back_by_run_checkpoint_and_file(run, tmp_path):
    expected, model = backbones.load_backbone(run / "checkpoints" / "step_00000003")
    backbones.write_backbone(tmp_path / "alone.safetensors", expected, model)
    for path in (run, run / "checkpoints", tmp_path / "alone.safetensors"):
        found, found_model = backbones.load_backbone(path)
        assert found_model == model
        assert not found.training
        for name, tensor in found.state_dict().items():
            assert torch.equal(tensor, expected.state_dict()[name])
    assert backbones.fingerprint(run) == backbones.fingerprint(run / "checkpoints" / "step_00000003")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"embedding_size": 9},
            r"backbone\.f\S+ is float32 8\S* .*there and float32 9.* here; the model section was different",
        ),
        ({"optim": "adamw"}, "optim.name"),
    ],
)
def test_another_model_or_optimiser_is_refused(run, keys, message):
    state = build_state(_config(run, **keys), COUNTS, World())
    with pytest.raises(InputError, match=message):
        state.load(run / "checkpoints" / "step_00000003")


def test_another_number_of_classes_is_refused(run):
    state = build_state(_config(run), np.append(COUNTS, 1), World())
    with pytest.raises(
        InputError, match=r"classifier\.\w+ is float32 13 x 8 there and float32 14 x 8 here; the number of people"
    ):
        state.load(run / "checkpoints" / "step_00000003")


def test_an_exported_backbone_keeps_its_name(run, tmp_path):
    backbone, model = backbones.load_backbone(run)
    backbones.write_backbone(tmp_path / "a.safetensors", backbone, model, fingerprint=backbones.fingerprint(run))
    assert backbones.fingerprint(tmp_path / "a.safetensors") == backbones.fingerprint(run)


def test_what_is_no_checkpoint(tmp_path, run):
    for name in ("face.onnx", "lfw.bin", "model.pt"):
        (tmp_path / name).write_bytes(b"something")
        with pytest.raises(InputError, match=r"is not a \.safetensors file; expected a run's folder"):
            backbones.load_backbone(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        backbones.load_backbone(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no checkpoint"):
        backbones.load_backbone(tmp_path / "empty")
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        backbones.load_backbone(tmp_path / "text.safetensors")
    shard = next((run / "checkpoints" / "step_00000003").glob("classifier*"))
    with pytest.raises(InputError, match="does not say which model"):
        backbones.load_backbone(shard)


def test_the_manifest_says_what_it_is(run):
    manifest = json.loads((run / "checkpoints" / "step_00000003" / "manifest.json").read_text())
    assert manifest["step"] == 3
    assert manifest["ranks"] == 1
    assert manifest["num_classes"] == CLASSES
    assert set(manifest["files"]) == set(FILES)


def test_sgd_without_momentum_has_no_state_and_resumes(tmp_path):
    config = Config.model_validate(_config(tmp_path / "run").model_dump() | {"optim": {"momentum": 0}})
    path = saved_state(_trained_state(config, World()), _about(config))
    assert not (path / "optimizer.safetensors").exists()
    verify(path)
    state = build_state(config, COUNTS, World())
    state.load(path)
    assert state.step == 2


def test_a_state_that_is_not_finite_is_not_saved(run):
    config = _config(run)
    state = _trained_state(config, World(), steps=4)
    next(state.backbone.parameters()).data[0] = torch.inf
    with pytest.raises(RunError, match=r"not finite after step 4; the last good checkpoint is .*step_00000003"):
        saved_state(state, _about(config))
    assert [path.name for path in listed(run / "checkpoints")] == ["step_00000002", "step_00000003"]


def test_the_checkpoint_just_written_is_never_pruned(run):
    """A newer one that is damaged, from before the run went back to an older one, must not push it out."""
    config = Config.model_validate(_config(run).model_dump() | {"train": {"keep_checkpoints": 1}})
    state = _trained_state(config, World(), steps=1)
    path = saved_state(state, _about(config))
    assert listed(run / "checkpoints") == [path]


def _load_where_one_rank_cannot(world, config, path):
    from facetrain import train

    def unreadable(path, pieces):
        raise InputError(f"{path} cannot be read by rank 1")

    if world.rank == 1:
        train.read = unreadable
    with pytest.raises(InputError) as caught:
        _load(world, config, path)
    return str(caught.value)


def test_all_ranks_leave_where_one_cannot_read(run):
    path = run / "checkpoints" / "step_00000003"
    expected = f"{path} cannot be read by rank 1"
    assert run_ranks(2, _load_where_one_rank_cannot, _config(run), path) == [expected, expected]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_seen_wherever_it_is(value):
    fine = [torch.full((3, 2, 4, 4), 3e38), torch.arange(3), torch.empty((0, 4)), torch.tensor(1.0)]  # a sum overflows
    assert all_finite(fine)
    assert all_finite([])
    for shape in ((), (5,), (2, 3), (2, 3, 4, 4)):
        tensor = torch.ones(shape)
        tensor[(-1,) * len(shape)] = value
        for kind in (torch.float32, torch.float64, torch.bfloat16):
            assert not all_finite([*fine, tensor.to(kind)])
