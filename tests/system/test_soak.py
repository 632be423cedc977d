"""20,000 updates with 20 restarts: memory, file descriptors and threads stay what they were."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from forked import Trainer
from scale import scale
from tiny import tiny_recipe, write_tiny

RANKS, EVERY, WARM = 2, 10, 300
"""Updates between two looks, and before the first one: what is made once is there by then."""

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def _count(rank, folder, start, until):
    """In a rank: note the process every so often from ``WARM`` updates on; ask for the end in update ``until``."""
    from facetrain import run

    update = run.train_step
    file = Path(folder, f"looks{start:06d}.{rank}")

    def counting(state, *args):
        done = update(state, *args)
        if state.step >= start + WARM and state.step % EVERY == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            threads, files = (len(os.listdir(f"/proc/self/{what}")) for what in ("task", "fd"))
            with file.open("a") as looks:
                looks.write(json.dumps([state.step, pages, threads, files]) + "\n")
        if state.step == until and rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    run.train_step = counting


def _growth(looks):
    """What a straight line through the resident memory gains over the looks, as a share of it."""
    steps, pages = looks[:, 0], looks[:, 1]
    slope = np.polyfit(steps, pages, 1)[0]
    return slope * (steps[-1] - steps[0]) / pages.mean()


def test_memory_files_and_threads_stay_constant(tmp_path, capsys):
    starts = scale(quick=1, ci=2, release=20)
    length = scale(quick=600, ci=1000, release=1000)
    data, output = write_tiny(tmp_path / "train.rec"), tmp_path / "run"
    epochs = starts * length // 4 + 1
    train = {"epochs": epochs, "log_every": 10, "checkpoint_every": 50, "batch_size": 16, "threads": 1}
    config = tiny_recipe(data, output, train=train | {"resume": "auto"}, classifier={"sample_rate": 0.5})
    for number in range(starts):
        ranks = Trainer(config, RANKS, tmp_path / "log", _count, str(tmp_path), number * length, (number + 1) * length)
        assert ranks.wait(3600) == [128 + signal.SIGTERM] * RANKS, ranks.said()
    growths = {rank: [] for rank in range(RANKS)}
    for file in sorted(tmp_path.glob("looks*")):
        looks = np.array([json.loads(line) for line in file.read_text().splitlines()])
        growths[int(file.suffix[1:])].append(_growth(looks))
        assert len(looks) == (length - WARM) // EVERY + 1
        half = len(looks) // 2  # the least of each half, as a checkpoint is now and then being written
        assert looks[:half, 2].min() == looks[half:, 2].min(), f"threads: {looks[:, 2].tolist()}"
        assert looks[:half, 3].min() == looks[half:, 3].min(), f"files: {looks[:, 3].tolist()}"
    with capsys.disabled():
        worst = max(max(found) for found in growths.values())
        print(f"\n{starts * length} updates, {starts} starts: memory +{worst:.2%} at worst in {length - WARM} updates")
    for found in growths.values():
        assert len(found) == starts
        assert np.median(found) < 0.01
