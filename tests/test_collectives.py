"""What goes between ranks in an update, and in a step of the loop: number and bytes of every collective.

Two counts that know nothing of each other: every function of torch.distributed by name, wrapped; and torch's profiler,
which sees what reaches the process group, DDP's own calls too.
"""

import contextlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent / "system"))

from tiny import write_tiny

from facetrain import run
from facetrain.config import Config
from facetrain.data.loader import Batch
from facetrain.keyed import bits
from facetrain.longtail.angles import BINS
from facetrain.models import build_backbone
from facetrain.train import build_state, train_step

STEPS, SIDE, D, CLASSES, SYNC = 6, 16, 8, 31, 3
FLOAT, DOUBLE, LONG = 4, 8, 8

_NAMES = {
    "all-gather": ("all_gather_into_tensor", "all_gather_single", "all_gather", "all_gather_object"),
    "reduce-scatter": ("reduce_scatter_tensor", "reduce_scatter_single", "reduce_scatter"),
    "all-reduce": ("all_reduce",),
    "broadcast": ("broadcast", "broadcast_object_list"),
    "barrier": ("barrier", "monitored_barrier"),
    "other": ("all_to_all", "all_to_all_single", "gather", "scatter", "reduce", "send", "recv", "isend", "irecv"),
}


class Ledger:
    """Collectives in the order of their calls, as (kind, bytes of its larger side)."""

    def __init__(self):
        self.entries = []
        self.kind = None  # of a call that is not what its function is called

    @contextlib.contextmanager
    def open(self):
        """Every function of torch.distributed writes itself down."""
        before = {name: getattr(dist, name) for names in _NAMES.values() for name in names if hasattr(dist, name)}
        for kind, names in _NAMES.items():
            for name in names:
                if name in before:
                    setattr(dist, name, self._noting(kind, before[name]))
        try:
            yield self
        finally:
            for name, function in before.items():
                setattr(dist, name, function)

    def _noting(self, kind, function):
        def noting(*args, **keys):
            tensors = [thing for thing in args if isinstance(thing, torch.Tensor)]
            self.entries.append((self.kind or kind, max((t.numel() * t.element_size() for t in tensors), default=0)))
            return function(*args, **keys)

        return noting

    def gradients(self, _, bucket):
        """A communication hook for DDP: what it does without one, written down."""
        self.kind = "gradients"
        try:
            return allreduce_hook(None, bucket)
        finally:
            self.kind = None

    def taken(self):
        """What was written since the last call."""
        entries, self.entries = self.entries, []
        return entries


def _config(folder="unused", records="unused", **sections):
    recipe = {
        "data": {"path": records},
        "model": {"width": 4, "input_size": SIDE, "embedding_size": D},
        "leap": {"variant": "vanilla", "head_threshold": 4, "start_epoch": 0, "sync_interval": SYNC},
        "train": {"batch_size": 12, "threads": 1},
    }
    for name, keys in sections.items():
        recipe[name] = recipe.get(name, {}) | keys
    return Config.model_validate({"output": folder, "device": "cpu", **recipe})


def _updates(world, config, hooked=True):
    """Per update the entries and the distinct classes; bytes of gradients; the count by the profiler of the last."""
    ledger, updates = Ledger(), []
    with ledger.open():
        state = build_state(config, 2 + np.arange(CLASSES) % 5, world)
        if hooked:
            state.parallel.register_comm_hook(None, ledger.gradients)
        ledger.taken()
        for step in range(STEPS):
            batches = [_batch(world, config, step * config.train.accumulation + i) for i in range(_micro(config)[0])]
            last = step == STEPS - 1  # of one only: sorting its events takes longer than the update
            with profile(activities=[ProfilerActivity.CPU]) if last else contextlib.nullcontext() as seen:
                train_step(state, batches, 0.1)
            updates.append((ledger.taken(), np.unique(np.concatenate([batch.labels for batch in batches])).tolist()))
    gradients = sum(p.numel() for p in state.backbone.parameters() if p.requires_grad) * FLOAT
    return updates, gradients, sum(event.name.startswith("c10d::") for event in seen.events())


def _micro(config):
    """Micro-batches of an update, and images of all ranks in each."""
    return config.train.accumulation, config.train.batch_size // config.train.accumulation


def _batch(world, config, number):
    rows = _micro(config)[1]
    own = world.rows_of(rows)
    pixels = (bits(1, number, np.arange(rows * SIDE * SIDE * 3)) % 256).astype(np.uint8)
    labels = (bits(2, number, np.arange(rows)) % CLASSES).astype(np.int64)
    return Batch(torch.from_numpy(pixels.reshape(rows, SIDE, SIDE, 3)[own.start : own.stop]), labels)


CASES = {
    "plain": {},
    "uneven batch": {"train": {"batch_size": 11}},
    "two micro-batches, sampled": {"train": {"batch_size": 24, "accumulation": 2}, "classifier": {"sample_rate": 0.4}},
    "norm of everything": {"optim": {"clip_norm": 5.0}},
}


def _all_cases(world):
    """Every case with DDP's calls written down, and the profiler's count of the first one without."""
    counted = [_updates(world, _config(**case)) for case in CASES.values()]
    return counted, _updates(world, _config(), hooked=False)[2]


def _expected(config, size, gradients, touched):
    """The ceiling: what an update may send; of the gradients, which DDP cuts as it likes, the sum."""
    accumulation, rows = _micro(config)
    padded = -(-rows // size) * size
    entries = Counter(
        {
            ("all-gather", padded * D * FLOAT): accumulation,
            ("all-reduce", rows * 2 * DOUBLE): accumulation,
            ("reduce-scatter", padded * D * FLOAT): accumulation,
            ("gradients", gradients): 1,
        }
    )
    if config.optim.clip_norm is not None:
        entries["all-reduce", DOUBLE] += 1
    if touched:
        entries["all-reduce", len(touched) * DOUBLE] += 1
    return entries


@pytest.mark.parametrize("size", [2, 3])
def test_an_update_sends_no_more_than_it_must(size):
    counted, bare = zip(*run_ranks(size, _all_cases), strict=True)
    print(
        f"\n{size} ranks: collectives of {STEPS} updates\n| case | kind | calls | bytes |\n| --- | --- | ---: | ---: |"
    )
    for number, name in enumerate(CASES):
        config = _config(**CASES[name])
        for rank, results in enumerate(counted):
            updates, gradients, events = results[number]
            assert len(updates) == STEPS
            assert events == len(updates[-1][0]), f"{name}: some that no name accounts for"
            assert number or events == bare[rank], "DDP without the hook sends another number"
            touched = set()
            for step, (entries, classes) in enumerate(updates, start=1):
                touched.update(classes)
                found = Counter(entry for entry in entries if entry[0] != "gradients")
                found["gradients", sum(size for kind, size in entries if kind == "gradients")] += 1
                due = touched if step % SYNC == 0 else set()
                assert found == _expected(config, size, gradients, due), f"{name}, rank {rank}, update {step}"
                touched -= due
        print("\n".join(_table(name, counted[0][number][0])))


def _table(name, updates):
    entries = [entry for update in updates for entry in update[0]]
    calls = Counter(entries)
    return [f"| {name} | {kind} | {calls[kind, size]} | {size:,} |" for kind, size in sorted(set(entries))]


def _loop(world, config):
    """What the loop sends beside updates, step by step: the ledger's entries between two of them."""
    ledger, between = Ledger(), []

    def noted(state, batches, lr):
        between.append(ledger.taken())
        update = train_step(state, batches, lr)
        ledger.taken()
        return update

    @contextlib.contextmanager
    def there(*_):
        yield world

    before, run.train_step, run.joined = (run.train_step, run.joined), noted, there
    try:
        with ledger.open():
            assert run.train(config) == 0
    finally:
        run.train_step, run.joined = before
    buffers = build_backbone(config.model).buffers()
    return between[1:], sum(b.numel() for b in buffers if b.is_floating_point()) * FLOAT


@pytest.mark.parametrize("size", [2, 3])
def test_the_loop_on_cpus_adds_three_small_sums_a_step(size, tmp_path):
    """Are there damaged images, running statistics, is there a signal; at an epoch's end the histogram of angles too.

    On GPUs the same three come with a log line, a checkpoint or a verification only: docs/scaling.md.
    """
    config = _config(
        tmp_path / "run",
        write_tiny(tmp_path / "tiny.rec"),
        data={"workers": 0},
        train={"epochs": 4, "batch_size": 32, "log_every": 100, "checkpoint_every": 100},
    )
    for between, statistics in run_ranks(size, _loop, config):
        assert len(between) == 7
        for done, entries in enumerate(between, start=1):
            histogram = [("all-reduce", 2 * BINS * LONG)] if done % 2 == 0 else []
            assert entries == [("all-reduce", DOUBLE), ("all-reduce", statistics), ("all-reduce", DOUBLE), *histogram]
    print(f"\n{size} ranks, a step of the loop on CPUs: 2 sums of {DOUBLE} bytes, 1 of {statistics:,}")
