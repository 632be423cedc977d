"""Hanging and dying ranks, in processes of their own: how soon they end, and with which words."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import facetrain
from facetrain import launch
from facetrain.commands import health
from facetrain.distributed import peers_failed
from facetrain.errors import LostRankError
from facetrain.watch import deaf_launcher
from facetrain.watch.meeting import Board, meet, read
from facetrain.watch.pulse import HEARTBEAT, Pulse, Report, report_from
from facetrain.watch.verdict import LONGEST, Heard, hanging, lost

HOSTS = ("node-a.cluster.example", "node-a.cluster.example", "node-b.cluster.example", "node-b.cluster.example")
GOOD = "go on from step_00000030"


def report(rank, **fields):
    place = fields.pop("place", "in backward, inside all-reduce 90")
    known = {"number": 1, "launcher": "", "pid": 1, "step": 34, "count": 90, "left": -1.0, "sent": 0.0}
    return Report(rank=rank, place=place, **known | fields)


def heard(**others):
    """Ranks 1..3 as rank 0 hears them: alive and waiting where it does, but for those given as r1=Heard(...)."""
    return {rank: others.get(f"r{rank}", Heard(report(rank))) for rank in (1, 2, 3)}


@pytest.mark.parametrize(
    ("others", "line"),
    [
        (
            {"r2": Heard(report(2, count=89, place="in waiting for images, after all-reduce 89"))},
            "no step for 60 s: rank 2 on node-b hangs at step 34 in waiting for images, after all-reduce 89; rank 0 "
            "waits in backward, inside all-reduce 90; go on from step_00000030",
        ),
        (
            {"r3": Heard(report(3, step=33), silent=58.6)},
            "no step for 60 s: rank 3 on node-b silent for 59 s (stopped or cut off), last at step 33; rank 0 on "
            "node-a waits at step 34 in backward, inside all-reduce 90; go on from step_00000030",
        ),
        (
            {"r2": Heard(report(2), silent=58.6), "r3": Heard(None, silent=58.0)},
            "no step for 60 s: ranks 2, 3 on node-b silent for 59 s (stopped or cut off), last at step 34; rank 0 on "
            "node-a waits at step 34 in backward, inside all-reduce 90; go on from step_00000030",
        ),
        (
            {"r1": Heard(report(1), silent=9, gone=True)},
            "no step for 60 s: rank 1 on node-a is gone (killed?); rank 0 on node-a waits at step 34 in backward, "
            "inside all-reduce 90; go on from step_00000030",
        ),
        (
            {"r1": Heard(report(1, end="InputError: a.rec is gone"))},
            "no step for 60 s: rank 1 on node-a ended at step 34: InputError: a.rec is gone; rank 0 on node-a waits at "
            "step 34 in backward, inside all-reduce 90; go on from step_00000030",
        ),
        (
            {},
            "no step for 60 s: all ranks hang: rank 0 on node-a at step 34 in backward, inside all-reduce 90; go on "
            "from step_00000030",
        ),
        # One has left the collective that the others are in: it is the one to look at.
        (
            {"r2": Heard(report(2, place="in backward, after all-reduce 90"))},
            "no step for 60 s: all ranks hang: rank 2 on node-b at step 34 in backward, after all-reduce 90; go on "
            "from step_00000030",
        ),
    ],
)
def test_who_is_to_blame(others, line):
    said = hanging(60.2, report(0), heard(**others), HOSTS, 0.0, GOOD)
    assert said == line
    assert len(said) <= LONGEST


def test_the_only_rank_names_itself():
    said = hanging(60, report(0, place="in waiting for images"), {}, HOSTS[:1], 0.0, GOOD)
    assert said == f"no step for 60 s: rank 0 on node-a hangs at step 34 in waiting for images; {GOOD}"


def test_who_cannot_hear_the_others_says_so():
    said = hanging(60, report(3), heard(), HOSTS, 59.0, GOOD)
    assert said == (
        "no step for 60 s: rank 3 on node-b hears nothing from rank 0 on node-a for 59 s (stopped or cut off), at step "
        f"34 in backward, inside all-reduce 90; {GOOD}"
    )


def test_lost_peers_name_the_dead_and_stay_short():
    said = lost(report(0), heard(r3=Heard(report(3), 1.0, gone=True)), HOSTS, GOOD)
    assert said == (
        f"rank 0 on node-a lost its peers at step 34 in backward, inside all-reduce 90: rank 3 on node-b is gone "
        f"(killed?); {GOOD}"
    )
    assert "which one is unknown" in lost(report(0), heard(), HOSTS, GOOD)
    many = {rank: Heard(report(rank), 5.0) for rank in range(1, 640)}
    said = lost(report(0, place="in " + "a phase of many words " * 9), many, ["h" * 60] * 640, GOOD)
    assert len(said) == LONGEST
    assert said.endswith(f"...; {GOOD}")


def test_a_pulse_knows_where_it_is():
    pulse = Pulse()
    assert pulse.where() == "in the start"
    calls = []
    pulse.at_collective = lambda: calls.append(pulse.count)
    before = pulse.noted
    with pulse.entering("all-gather"):
        assert pulse.where() == "in the start, inside all-gather 1"
    assert pulse.noted > before
    pulse.beat(3, "backward", allowed=5)
    with pytest.raises(RuntimeError), pulse.entering("all-reduce"):
        raise RuntimeError
    assert (pulse.step, pulse.allowed, calls) == (3, 5, [0])
    assert pulse.where() == "in backward, inside all-reduce 2"  # one that failed is where the rank was
    assert dataclasses.replace(report_from(report(2).to_json())) == report(2)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.1]:35021"), True),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 15000ms for recv"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("Connection closed by peer"), False),
    ],
)
def test_which_errors_mean_a_lost_peer(error, expected):
    assert peers_failed(error) is expected
    wrapped = RuntimeError("backward failed")
    wrapped.__cause__ = error
    assert peers_failed(wrapped) is expected


class Shared(dict):
    """A store within one process."""

    def set(self, key, value):
        self[key] = value.encode()

    def check(self, keys):
        return all(key in self for key in keys)

    def get(self, key):
        return self[key]

    def compare_set(self, key, expected, desired):
        if key not in self and not expected:
            self.set(key, desired)
        return self[key]


def _met(store, sizes, patience=5.0):
    """What each rank of a round finds, in threads."""
    found = {}

    def one(rank):
        try:
            found[rank] = meet(store, rank, sizes, patience, pause=0.001)
        except LostRankError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(sizes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_rounds_in_one_store_never_share_a_name():
    store, names = Shared(), []
    for size in (3, 2, 4, 4):
        found = _met(store, size)
        assert sorted(found) == list(range(size))
        assert len(set(found.values())) == 1
        names.append(found[0])
    assert len(set(names)) == 4


def test_a_round_that_is_not_complete_says_who_is_missing():
    store = Shared()
    _met(store, 3)  # whose greetings a later round must not take for its own
    with pytest.raises(LostRankError, match=r"rank 0 waited 0 s for the others to start: ranks \[1, 2\] did not come"):
        meet(store, 0, 3, 0.05, pause=0.001)
    with pytest.raises(LostRankError, match=r"rank 2 waited 0 s .* rank 0 did not answer"):
        meet(store, 2, 3, 0.05, pause=0.001)


def test_a_board():
    store = Shared()
    board = Board(store, "round")
    board.post("a", "1")
    board.post("a", "2")
    assert board.read(["a", "b"]) == ["2", ""]
    assert [board.post_first("alarm", line) for line in ("first", "second")] == ["first", "first"]
    assert Board(store, "another").read(["a"]) == [""]
    assert read(store, "round/alarm") == "first"


RANK = """
    import faulthandler, os, signal, sys, time
    from pathlib import Path
    import torch
    from facetrain import cli
    from facetrain.distributed import joined
    from facetrain.processes import StopRequest
    from facetrain.watch.watchdog import Watchdog, group_timeout
    here, timeout = Path(sys.argv[1]), float(sys.argv[2])
    def train():
        with (
            joined("cpu", group_timeout(timeout)) as world,
            StopRequest().listening(),
            Watchdog(world, here, timeout),
        ):
            for step in range(10**6):
                world.pulse.beat(step, "waiting for images")
                if step == 5:
                    trouble(world)
                world.sum_(torch.ones(2))
                (here / f"alive{world.rank}").write_text(str(os.getpid()))
                time.sleep(0.01)
        return 0
    def main():
        cli.app = lambda **words: train()
        sys.exit(cli.main([]))
"""


def ranks(folder, trouble, size=2, timeout=2.0, **environment):
    """Run ranks that get into trouble at step 5 under our launcher; (exit code, what it said, seconds)."""
    program = folder / "rank.py"
    program.write_text(textwrap.dedent(RANK) + textwrap.dedent(trouble) + "\nmain()\n")
    words = [str(program), str(folder), str(timeout)]
    start = f"import sys; from facetrain import launch; sys.exit(launch.run(sys.argv[2:], {size}, [sys.argv[1]]))"
    command = [sys.executable, "-c", start, *words] if size > 1 else [sys.executable, *words]
    environment |= {"PYTHONPATH": str(Path(facetrain.__file__).parents[1])}
    began = time.monotonic()
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=90)
    said = "".join(line for line in done.stderr.splitlines(keepends=True) if "socket.cpp" not in line)
    return done.returncode, said.strip(), time.monotonic() - began


def test_a_rank_that_hangs_alone_leaves_its_stack_and_one_line(tmp_path):
    beat = tmp_path / "beat"
    code, said, _ = ranks(tmp_path, "def trouble(world): time.sleep(999)", size=1, **{HEARTBEAT: str(beat)})
    assert code == 3
    name = launch.os.uname().nodename.partition(".")[0][:10]
    assert said.startswith(f"facetrain: error: no step for 2 s: rank 0 on {name}")
    assert said.endswith(" hangs at step 5 in waiting for images; no checkpoint yet")
    assert "in trouble" in (tmp_path / "stacks" / "step-00000005-rank-00000.txt").read_text()
    assert json.loads(beat.read_text())["timeout"] == 2  # a hanging run leaves it, for whoever asks for its health


def test_the_rank_that_hangs_is_named_by_the_others_and_every_stack_is_written(tmp_path):
    code, said, _ = ranks(tmp_path, "def trouble(world):\n    while world.rank == 1: time.sleep(0.01)")
    assert code == 3
    assert "facetrain: error: no step for 2 s: rank 1 on " in said
    assert (
        "hangs at step 5 in waiting for images, after all-reduce 5; rank 0 waits in waiting for images, inside" in said
    )
    stacks = sorted((tmp_path / "stacks").iterdir())
    assert [path.name for path in stacks] == [f"step-00000005-rank-0000{rank}.txt" for rank in range(2)]
    assert "in trouble" in stacks[1].read_text()


def test_a_stopped_rank_is_named_and_ended(tmp_path):
    code, said, seconds = ranks(tmp_path, "def trouble(world):\n    if world.rank == 0: os.kill(os.getpid(), 19)")
    assert code == 3
    assert said.startswith("facetrain: error: no step for 2 s: rank 0 on ")
    assert "(stopped or cut off), " in said
    assert "at step 5 in waiting for images, inside all-reduce 6; no checkpoint yet" in said
    assert seconds < 2 + 30  # torch alone would wait another minute for it
    assert deaf_launcher.state(int((tmp_path / "alive0").read_text())) == ""


def test_a_killed_rank_is_told_with_the_step(tmp_path):
    code, said, _ = ranks(tmp_path, "def trouble(world):\n    if world.rank == 1: os.kill(os.getpid(), 9)")
    assert code == 128 + signal.SIGKILL
    assert said.startswith("facetrain: error: rank 1 was killed by SIGKILL; most often memory ran out; rank 0 on ")
    assert "lost its peers at step 5 in waiting for images, inside all-reduce 6: rank 1 on " in said
    assert said.endswith("is gone (killed?); no checkpoint yet (rank 0)") or said.endswith("; no checkpoint yet")
    assert "\n" not in said
    assert not (tmp_path / "stacks").exists()


def test_what_may_take_longer_says_so_and_stays(tmp_path):
    trouble = """
        def trouble(world):
            world.pulse.beat(phase="compiling", allowed=30)
            time.sleep(4)
            sys.exit(7)
    """
    assert ranks(tmp_path, trouble, size=1)[0] == 7


def test_a_rank_that_works_on_holds_back_those_that_wait_for_it(tmp_path):
    trouble = """
        def trouble(world):
            for _ in range(50 * world.rank):
                world.pulse.beat(phase="verification")
                time.sleep(0.1)
            world.barrier()
            sys.exit(7)
    """
    assert ranks(tmp_path, trouble, timeout=3.0)[0] == 7


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_launcher_that_is_deaf_is_ended_and_one_that_hears_is_not(tmp_path):
    body = "import subprocess, sys, time; p = subprocess.Popen(['true']); print(flush=True); "
    deaf = subprocess.Popen([sys.executable, "-c", body + "time.sleep(60)"], stdout=subprocess.PIPE)
    hears = subprocess.Popen([sys.executable, "-c", body + "p.wait(); time.sleep(60)"], stdout=subprocess.PIPE)
    for process in (deaf, hears):
        process.stdout.readline()
    assert not deaf_launcher.end_if_deaf(hears.pid, patience=0.3, longest=1)
    assert deaf_launcher.end_if_deaf(deaf.pid, patience=0.3, longest=10)
    assert deaf.wait(10) == -signal.SIGKILL
    assert hears.poll() is None
    hears.kill()
    hears.wait(10)
    assert not deaf_launcher.end_if_deaf(hears.pid, longest=1)


@pytest.mark.parametrize(
    ("beat", "code", "line"),
    [
        (None, 0, "nothing trains here"),
        ({}, 0, "healthy"),
        ({"written": time.time() - 100}, 1, "s, last at step 7 in saving; the process is stopped, killed or stuck"),
        ({"left": -3.0}, 1, "unhealthy: no step for more than 60 s, at step 7 in saving"),
        ("half a fi", 1, "is not a heartbeat file of facetrain"),
    ],
)
def test_health(tmp_path, monkeypatch, beat, code, line):
    import typer

    file = tmp_path / "beat"
    if isinstance(beat, dict):
        known = {"step": 7, "place": "in saving", "left": 50.0, "timeout": 60.0, "written": time.time() + 60}
        beat = json.dumps(known | beat)
    if beat is not None:
        file.write_text(beat)
    monkeypatch.setenv(HEARTBEAT, str(file))
    app = typer.Typer()
    app.command()(health.health)
    answer = CliRunner().invoke(app)
    assert answer.exit_code == code
    assert line in answer.output
    monkeypatch.delenv(HEARTBEAT)
    assert CliRunner().invoke(app, [str(file)]).exit_code == code
    assert "nothing trains here" in CliRunner().invoke(app).output
