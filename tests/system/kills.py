"""Runs of the real trainer that are killed at random moments and started again, until they are complete.

Two ways: ranks that a preloaded server forks (a kill costs about a second), and the real torchrun, which restarts
them by itself.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from forked import Trainer
from torch import Tensor

from facetrain import recipe
from facetrain.checkpoints.files import newest_good
from facetrain.config import Config
from facetrain.data.dataset import class_counts, open_images
from facetrain.data.sampler import steps_per_epoch
from facetrain.distributed import World
from facetrain.train import build_state

STALLED = 120.0
"""Seconds after which a start that neither ends nor reaches its moment counts as hanging."""


@dataclass
class Tally:
    """What was done and found.

    Attributes:
        kills: SIGKILLs of one rank or all.
        of_all: those that hit all ranks.
        inside: those at which a partial folder or a checkpoint too many lay on the disk.
        pruning: those of them with a checkpoint too many: after the renaming, before the end of the pruning.
        partial: unfinished folders found when all ranks were gone.
        before_first: kills that left no checkpoint at all.
        runs: complete runs.
        leaving: the longest that a rank lived on without its peer, seconds.
        seconds: of everything but the undisturbed runs.
    """

    kills: int = 0
    of_all: int = 0
    inside: int = 0
    pruning: int = 0
    partial: int = 0
    before_first: int = 0
    runs: int = 0
    leaving: float = 0.0
    seconds: float = 0.0

    def line(self) -> str:
        """The figures in words."""
        share = self.inside / max(1, self.kills)
        return (
            f"{self.kills} kills ({self.of_all} of all ranks), {self.inside} inside a save ({share:.0%}; "
            f"{self.pruning} between renaming and the end of pruning), {self.before_first} before the first "
            f"checkpoint, {self.partial} partial folders found, {self.runs} runs complete and bitwise equal, survivors "
            f"gone within {self.leaving:.2f} s, {self.seconds:.0f} s, {self.seconds / max(1, self.kills):.2f} s a kill"
        )


class Moment(NamedTuple):
    """When to kill: ``delay`` seconds after ``kind`` has happened for the ``count``-th time since the start."""

    kind: str
    count: int
    delay: float


def draw_moment(generator: random.Random) -> Moment:
    """Anywhere from the first instruction on; half of them are near a save, of which many hit."""
    kind, longest = generator.choice(
        [("start", 0.5), ("saving", 0.02), ("saving", 0.005), ("pruning", 0.001), ("saved", 0.05)]
    )
    return Moment(kind, generator.randint(1, 3), generator.uniform(0, longest))


class Watched:
    """A run's checkpoint folder as the killer sees it, from one start on."""

    def __init__(self, config: Config) -> None:
        self.folder, self.keep, self.since = (
            config.output / "checkpoints",
            config.train.keep_checkpoints,
            time.time_ns(),
        )
        self.before = newest_good(self.folder)[0]
        self.seen: dict[str, set[str]] = {"saving": set(), "saved": set(), "pruning": set()}

    def look(self) -> tuple[bool, bool]:
        """(a save has begun and not ended, one has ended and more checkpoints are there than are kept)."""
        newest, names = "" if self.before is None else self.before.name, set[str]()
        growing = set[str]()
        for entry in os.scandir(self.folder) if self.folder.is_dir() else ():
            if entry.name.startswith("step_"):
                names.add(entry.name)
            elif entry.name.startswith(".step_") and _changed(entry) > self.since:
                growing.add(entry.name)
        saved = {name for name in names if name > newest}
        pruning = len(names) > self.keep and bool(saved)
        self.seen["saving"] |= growing
        self.seen["saved"] |= saved
        self.seen["pruning"] |= {max(saved)} if pruning else set()
        return bool(growing), pruning

    def times(self, kind: str) -> int:
        """How often ``kind`` happened."""
        return len(self.seen[kind])

    def partial(self) -> int:
        """Folders that are neither checkpoints nor gone."""
        return sum(1 for _ in self.folder.glob(".step_*"))


def _changed(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_ctime_ns
    except FileNotFoundError:  # renamed or removed meanwhile
        return 0


def disturbed(config: Config, size: int, generator: random.Random, tally: Tally, kills: int) -> None:
    """A run with ``train.resume: auto`` that is killed up to so many times, and in the end is left to complete."""
    begin, log = time.monotonic(), config.output.with_suffix(".log")
    while True:
        watched = Watched(config)
        started = Trainer(config, size, log)
        moment = draw_moment(generator) if kills else None
        if not _reached(moment, started, watched):
            break
        everyone = generator.random() < 0.4
        victims = list(range(size)) if everyone else [generator.randrange(size)]
        started.kill(victims)
        growing, pruning = watched.look()
        tally.leaving = max(tally.leaving, started.end(generator.uniform(0, 0.1)))
        kills -= 1
        tally.kills += 1
        tally.of_all += everyone
        tally.inside += growing or pruning
        tally.pruning += pruning
        tally.partial += watched.partial()
        after = newest_good(watched.folder)[0]
        tally.before_first += after is None
        kept = watched.before is None or (after is not None and after.name >= watched.before.name)
        assert kept, f"{watched.before} was lost: {after}"
    codes = started.wait(STALLED)
    assert codes == [0] * size, f"exit codes {codes}:\n{started.said()}"
    tally.runs += 1
    tally.seconds += time.monotonic() - begin


def _reached(moment: Moment | None, started: Trainer, watched: Watched) -> bool:
    """Wait for the moment; False: the ranks ended first, or are to be left alone."""
    if moment is None:
        return False
    begin = time.monotonic()
    while moment.kind != "start" and watched.times(moment.kind) < moment.count:
        if None not in started.codes():
            return False
        assert time.monotonic() - begin < STALLED, f"no step in {STALLED} s:\n{started.said()}"
        watched.look()
        time.sleep(0.0002)
    time.sleep(moment.delay)
    return None in started.codes()


def under_torchrun(config: Config, size: int, generator: random.Random, tally: Tally, kills: int) -> None:
    """A run under the real torchrun, one of whose workers is killed so many times; torchrun restarts them all."""
    begin, log = time.monotonic(), config.output.with_suffix(".log")
    file = config.output.with_suffix(".yaml")
    file.write_text(recipe.dump(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={size}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--local-addr=localhost"]
    command += [f"--max-restarts={kills}", "-m", "facetrain", "train", str(file)]
    with open(log, "ab") as output:
        agent = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        for _ in range(kills):
            watched = Watched(config)
            moment = draw_moment(generator)
            end = time.monotonic() + STALLED
            kind = "saved" if moment.kind == "start" else moment.kind
            while watched.times(kind) < moment.count:
                assert agent.poll() is None, f"torchrun ended with {agent.returncode}:\n{log.read_text()[-3000:]}"
                assert time.monotonic() < end, f"no step in {STALLED} s:\n{log.read_text()[-3000:]}"
                watched.look()
                time.sleep(0.0002)
            time.sleep(moment.delay)
            workers = _children(agent.pid)
            os.kill(generator.choice(workers), signal.SIGKILL)
            growing, pruning = watched.look()
            tally.kills += 1
            tally.inside += growing or pruning
            tally.pruning += pruning
            tally.partial += watched.partial()
            while set(_children(agent.pid)) & set(workers):
                assert time.monotonic() < end, "torchrun did not end the workers"
                time.sleep(0.01)
        code = agent.wait(STALLED)
        assert code == 0, f"torchrun ended with {code}:\n{log.read_text()[-3000:]}"
    finally:
        if agent.poll() is None:
            os.killpg(agent.pid, signal.SIGKILL)
    tally.runs += 1
    tally.seconds += time.monotonic() - begin


def _children(parent: int) -> list[int]:
    """Processes that a process has started and that run."""
    found: list[int] = []
    for file in Path(f"/proc/{parent}/task").glob("*/children"):
        found += [int(child) for child in file.read_text().split()]
    return sorted(child for child in found if Path(f"/proc/{child}/cmdline").read_bytes())


def trained(config: Config) -> dict[str, Tensor]:
    """Every tensor of a run's newest checkpoint: weights, running statistics, momentum, centres, rings, variances."""
    path, problems = newest_good(config.output / "checkpoints")
    assert path is not None, problems
    assert not problems
    return loaded(config, path)


def loaded(config: Config, path: Path) -> dict[str, Tensor]:
    """Every tensor of a training state of one rank that was loaded from a checkpoint of any number of ranks."""
    images = open_images(config.data.path)
    per_epoch = steps_per_epoch(len(images), config.train.batch_size)
    state = build_state(config, class_counts(images.labels, images.num_classes), World(), per_epoch)
    state.load(path)
    found = {f"backbone {name}": tensor for name, tensor in state.backbone.state_dict().items()}
    names = {parameter: name for name, parameter in state.backbone.named_parameters()}
    for parameter, kept in state.optimizer.state.items():
        found |= {f"{key} of {names[parameter]}": torch.as_tensor(value) for key, value in kept.items()}
    found |= {f"classifier {name}": tensor for name, tensor in state.classifier.sharded_state().items()}
    found["step"] = torch.tensor(state.step)
    leap = state.leap
    if leap.active:
        found |= {"centres": leap.centers.value, "seen": torch.from_numpy(leap.centers.seen)}
        found |= {"rings": leap.angles.codes, "written": torch.from_numpy(leap.angles.written)}
        found |= {"variances": leap.variance, "target": leap.target}
        found |= {"rows not yet counted": leap.pending, "their classes": torch.from_numpy(leap.pending_labels)}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def differing(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not equal bit for bit (two NaN are equal)."""
    assert expected.keys() == found.keys()
    return [
        name
        for name, tensor in expected.items()
        if tensor.dtype != found[name].dtype or not _bytes_of(tensor).equal(_bytes_of(found[name]))
    ]


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def recorded(config: Config) -> list[dict[str, Any]]:
    """metrics.jsonl but for what depends on time."""
    timed = ("seconds", "images_per_second", "memory_gib")
    lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]
