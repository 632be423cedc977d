"""A run stopped by 1 to 4 ranks in the middle of an epoch goes on with any other number of them.

Batch norm and dropout work on a rank's own share of a batch, so losses of different numbers of ranks can only be
compared where every image is normalised by itself and nothing is dropped; the running statistics are kept as ever.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forked import Trainer
from kills import differing
from safetensors.torch import load_file, save_file
from tiny import tiny_recipe, write_tiny
from torch import nn

STOP, LAST = 7, 27
"""7 lies in the middle of an epoch of 5 updates and between two synchronisations, after 6 and 9."""
SPREAD = ("weight", "weight momentum", "centres", "seen", "rings", "written")
PAIRS = list(itertools.product(range(1, 5), repeat=2))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks ranks")


class _OwnNorm2d(nn.BatchNorm2d):
    """Batch norm's parameters and running statistics; what it returns depends on no other image."""

    def forward(self, x):
        super().forward(x.detach())
        return F.group_norm(x, 1, self.weight, self.bias, self.eps)


class _OwnNorm1d(nn.BatchNorm1d):
    def forward(self, x):
        super().forward(x.detach())
        return F.layer_norm(x, x.shape[1:], self.weight, self.bias, self.eps)


def _watch(rank, folder, stop):
    """In a rank: normalise by image, note every batch and what is loaded and saved; SIGTERM in update ``stop``."""
    from facetrain import run, train
    from facetrain.data import loader

    build, update, load, save = train.build_backbone, run.train_step, train.TrainState.load, train.TrainState.save
    indices, drawn = loader.batch_indices, {}

    def built(config):
        backbone = build(config)
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.__class__ = _OwnNorm2d if isinstance(module, nn.BatchNorm2d) else _OwnNorm1d
        return backbone

    def stopping(state, *args):
        if state.step + 1 == stop and rank == state.world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(state, *args)

    def loading(state, path):
        load(state, path)
        save_file(_held(state), Path(folder, f"loaded{rank}.safetensors"))

    def saving(state, *args, **keys):
        save_file(_held(state), Path(folder, f"saved{rank}.safetensors"))
        Path(folder, f"drawn{rank}.json").write_text(json.dumps(drawn))
        return save(state, *args, **keys)

    def noting(n, batch_size, seed, step):
        epoch, images = indices(n, batch_size, seed, step)
        drawn[step] = (epoch, images.tolist())
        return epoch, images

    train.build_backbone, run.train_step, loader.batch_indices = built, stopping, noting
    train.TrainState.load, train.TrainState.save = loading, saving


def _held(state):
    """What this rank holds, the names of what is spread over the ranks as in ``SPREAD``."""
    leap, classifier = state.leap, state.classifier.sharded_state()
    names = {parameter: name for name, parameter in state.backbone.named_parameters()}
    held = {f"backbone {name}": tensor for name, tensor in state.backbone.state_dict().items()}
    held |= {f"{k} of {names[p]}": v for p, kept in state.optimizer.state.items() for k, v in kept.items()}
    held |= {"weight": classifier.pop("weight"), "variances": leap.variance, "target": leap.target}
    ((_, held["weight momentum"]),) = classifier.items()
    held |= {"centres": leap.centers.value, "seen": torch.from_numpy(leap.centers.seen)}
    held |= {"rings": leap.angles.codes, "written": torch.from_numpy(leap.angles.written)}
    held |= {"pending": leap.pending, "pending classes": torch.from_numpy(leap.pending_labels)}
    return {name: tensor.detach().clone().contiguous() for name, tensor in held.items()}


def _whole(folder, what, size):
    """The state of all ranks put together; rows not yet counted by class, as a synchronisation takes them."""
    ranks = [load_file(folder / f"{what}{rank}.safetensors") for rank in range(size)]
    whole = dict(ranks[0])
    for name in whole:
        if name in (*SPREAD, "pending", "pending classes"):
            whole[name] = torch.cat([held[name] for held in ranks])
        else:
            assert all(differing({name: whole[name]}, {name: held[name]}) == [] for held in ranks), name
    order = torch.argsort(whole["pending classes"], stable=True)
    return whole | {name: whole[name][order] for name in ("pending", "pending classes")}


def _run(data, output, size, stop, start=None):
    """Train with ``size`` ranks up to update ``stop``, from what lies in ``start``; the run's folder."""
    if start is not None:
        shutil.copytree(start, output)
    output.mkdir(exist_ok=True)
    config = tiny_recipe(
        data,
        output,
        leap={"variant": "vanilla", "head_threshold": 8, "start_epoch": 1, "sync_interval": 3},
        train={"epochs": 6, "batch_size": 12, "log_every": 1, "checkpoint_every": 100, "threads": 1, "resume": "auto"},
        classifier={"sample_rate": 0.7},
        model={"dropout": 0.0},
    )
    ranks = Trainer(config, size, output / "log", _watch, str(output), stop)
    assert ranks.wait() == [128 + signal.SIGTERM] * size, ranks.said()
    return output


def _losses(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def _drawn(output, size):
    """Update -> (epoch, image numbers), on which all ranks agree."""
    ranks = [json.loads((output / f"drawn{rank}.json").read_text()) for rank in range(size)]
    assert all(rank == ranks[0] for rank in ranks)
    return {int(step): (epoch, images) for step, (epoch, images) in ranks[0].items()}


def _check(undisturbed, old, before, before_size, after, size):
    """State bitwise after loading, the losses of the undisturbed run at the old number of ranks, its images."""
    assert differing(_whole(before, "saved", before_size), _whole(after, "loaded", size)) == []
    expected, found = _losses(undisturbed), _losses(after)
    assert list(found) == list(range(1, max(found) + 1))
    error = max(abs(found[step] / expected[step] - 1) for step in found)
    assert error < 1e-5
    steps, drawn = _drawn(undisturbed, old), _drawn(after, size)
    assert all(steps[step] == images for step, images in drawn.items())
    return error


def _check_epochs(drawn):
    """Every update from the first to the last, no image twice in an epoch."""
    assert sorted(drawn) == list(range(LAST))
    for epoch in range(6):
        images = [image for of, batch in drawn.values() if of == epoch for image in batch]
        assert len(set(images)) == len(images)


def _reshard(folder, people, pairs, capsys):
    data = write_tiny(folder / "data" / "train.rec", people=people)
    olds = {old for old, _ in pairs}
    undisturbed = {old: _run(data, folder / f"undisturbed{old}", old, LAST) for old in olds}
    stopped = {old: _run(data, folder / f"stopped{old}", old, STOP) for old in olds}
    errors = []
    for old, new in pairs:
        after = _run(data, folder / f"{old}to{new}", new, LAST, stopped[old])
        errors.append(_check(undisturbed[old], old, stopped[old], old, after, new))
        _check_epochs(_drawn(stopped[old], old) | _drawn(after, new))
    with capsys.disabled():
        print(
            f"\n{people} people, {len(pairs)} pairs of ranks: state bitwise, losses within {max(errors):.1e} relative"
        )


def test_two_ranks_become_three(tmp_path, capsys):
    _reshard(tmp_path, 13, [(2, 3)], capsys)


@pytest.mark.faults
@pytest.mark.parametrize("people", [13, 3])
def test_all_pairs_of_one_to_four_ranks(people, tmp_path, capsys):
    """13 people cannot be dealt out evenly; of 3 people one of four ranks has none."""
    _reshard(tmp_path, people, PAIRS, capsys)


@pytest.mark.faults
def test_a_chain_of_changes(tmp_path, capsys):
    data = write_tiny(tmp_path / "data" / "train.rec")
    undisturbed = _run(data, tmp_path / "undisturbed", 2, LAST)
    before, sizes, drawn, errors = None, [2, 3, 1, 4, 2], {}, []
    for number, (size, stop) in enumerate(zip(sizes, [7, 11, 13, 17, LAST], strict=True)):
        after = _run(data, tmp_path / f"part{number}", size, stop, before)
        if before is not None:
            errors.append(_check(undisturbed, 2, before, sizes[number - 1], after, size))
        drawn |= _drawn(after, size)
        before = after
    _check_epochs(drawn)
    with capsys.disabled():
        print(f"\nchain {sizes}: state bitwise at each change, losses within {max(errors):.1e} relative")


def test_running_statistics_are_kept_by_the_norm_used_here():
    """The stand-in counts the same statistics as batch norm, so that resharding them is tested as well."""
    torch.manual_seed(0)
    x, real, own = torch.randn(6, 4, 3, 3), nn.BatchNorm2d(4), _OwnNorm2d(4)
    real(x)
    y = own(x)
    assert torch.equal(real.running_var, own.running_var)
    np.testing.assert_allclose(own(x[:2]).detach(), y[:2].detach(), rtol=1e-5, atol=1e-6)
