import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from facetrain import launch
from facetrain.errors import InputError

WORKER = """
    import os, signal, sys, time
    from pathlib import Path
    from facetrain import launch
    rank, here = os.environ["RANK"], Path(sys.argv[1])
    def note(text):
        with open(here / f"rank{rank}", "a") as file:
            file.write(f"{text}\\n")
"""
LAUNCH = "import sys; from facetrain import launch; sys.exit(launch.run([sys.argv[2]], 2, [sys.argv[1]]))"


@pytest.fixture(autouse=True)
def _find_facetrain(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(launch.__file__).parents[1]))


def script(folder: Path, body: str) -> list[str]:
    path = folder / "worker.py"
    path.write_text(textwrap.dedent(WORKER) + textwrap.dedent(body))
    return [str(path)]


def notes(folder: Path, rank: int) -> list[str]:
    path = folder / f"rank{rank}"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_workers_get_arguments_unchanged_and_one_thread(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    program = script(tmp_path, "note((os.environ['WORLD_SIZE'], os.environ['OMP_NUM_THREADS'], sys.argv[2:]))")
    assert launch.run([str(tmp_path), "a$b", "${local_rank}", "x y", ""], 2, program) == 0
    for rank in range(2):
        assert notes(tmp_path, rank) == [str(("2", "1", ["a$b", "${local_rank}", "x y", ""]))]
    assert capfd.readouterr() == ("", "")
    assert "OMP_NUM_THREADS" not in os.environ
    assert not launch.under_torchrun()


def test_the_users_number_of_threads_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch.run([str(tmp_path)], 1, script(tmp_path, "note(os.environ['OMP_NUM_THREADS'])")) == 0
    assert notes(tmp_path, 0) == ["3"]


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("sys.exit(7) if rank == '1' else time.sleep(60)", 7, "rank 1 ended with exit code 7"),
        (
            "os.kill(os.getpid(), signal.SIGKILL) if rank == '1' else time.sleep(60)",
            137,
            "rank 1 was killed by SIGKILL; most often memory ran out",
        ),
        # Rank 1 is at fault, rank 0 notices: only the cause is told.
        (
            """
            while rank == "0" and not (here / "rank1").exists():
                time.sleep(0.001)
            launch.leave_word("the reason" if rank == "1" else "an echo")
            note("told")
            sys.exit(2 if rank == "1" else 1)
            """,
            2,
            "the reason (rank 1)",
        ),
        (
            "(launch.leave_word('a bad image'), sys.exit(2)) if rank == '1' else time.sleep(60)",
            2,
            "a bad image (rank 1)",
        ),
        ("(launch.leave_word('a bad path'), sys.exit(2)) if rank == '0' else time.sleep(60)", 2, "a bad path"),
    ],
)
def test_one_line_and_the_exit_code_of_the_worker_at_fault(tmp_path, capfd, body, code, line):
    assert launch.run([str(tmp_path)], 2, script(tmp_path, body)) == code
    assert capfd.readouterr() == ("", f"facetrain: error: {line}\n")


def test_a_defect_shows_the_traceback_of_one_rank(tmp_path, capfd):
    body = """
        try:
            raise KeyError(rank)
        except KeyError as error:
            launch.leave_word("KeyError", error)
            sys.exit(1)
    """
    assert launch.run([str(tmp_path)], 2, script(tmp_path, body)) == 1
    captured = capfd.readouterr().err
    assert captured.count("Traceback (most recent call last)") == 1
    assert "ended with exit code 1" in captured.splitlines()[-1]


SAVING = """
    got = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, frame: (got.append(n), note(f"got {n}")))
    launch.follow_launcher()
    note("ready")
    while not got:
        time.sleep(0.02)
    end = time.monotonic() + 2  # saves
    while time.monotonic() < end:
        time.sleep(0.02)
    note("saved")
    sys.exit(130)
"""


def start(folder: Path, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", LAUNCH, *script(folder, SAVING), str(folder)]
    # A session of its own: a signal to its group is what a terminal's Ctrl-C does to the launcher and all its children.
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: notes(folder, 0) == ["ready"] and notes(folder, 1) == ["ready"])
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_reaches_workers_once_and_they_may_save(tmp_path, number):
    process = start(tmp_path)
    for _ in range(3):  # within a second: some wrappers pass Ctrl-C on twice
        os.killpg(process.pid, number)
        time.sleep(0.1)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert said == f"facetrain: {number.name}: workers may save and leave, up to 60 s; Ctrl-C ends it at once\n"
    for rank in range(2):
        assert notes(tmp_path, rank) == ["ready", f"got {int(number)}", "saved"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is a Linux signal")
def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
    process = start(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.endswith("facetrain: ending the workers at once; the newest checkpoint is kept\n")
    for rank in range(2):
        assert notes(tmp_path, rank) == ["ready", "got 2"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is a Linux signal")
def test_workers_save_when_the_launcher_is_killed(tmp_path):
    process = start(tmp_path)
    process.kill()
    process.communicate(timeout=30)
    for rank in range(2):
        wait_for(lambda rank=rank: notes(tmp_path, rank)[-1] == "saved")
        assert set(notes(tmp_path, rank)) == {"ready", "got 15", "saved"}


@pytest.mark.slow
def test_workers_that_do_not_leave_are_killed_in_the_end(tmp_path):
    process = start(tmp_path, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143
    assert said.endswith("workers did not leave within 1 s and were killed; the newest checkpoint is kept\n")
    assert notes(tmp_path, 0) == ["ready", "got 15"]


@pytest.mark.parametrize(
    ("nproc", "device", "gpus", "answer"),
    [
        (None, "auto", 0, 1),
        (None, "auto", 4, 4),
        (2, "auto", 4, 2),
        (3, "auto", 0, 3),
        (None, "cpu", 4, 1),
        (9, "cpu", 4, 9),
        (5, "auto", 4, "this machine has 4 GPU(s); use --nproc 4 or less, or device=cpu"),
        (None, "cuda", 0, "PyTorch finds no GPU on this machine"),
        (0, "cpu", 0, "--nproc 0: expected at least 1 process"),
    ],
)
def test_number_of_workers(monkeypatch, nproc, device, gpus, answer):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if isinstance(answer, int):
        assert launch.workers(nproc, device) == answer
        return
    with pytest.raises(InputError) as caught:
        launch.workers(nproc, device)
    assert answer in str(caught.value)


FAILS_TWICE = """
restart = int(os.environ["FACETRAIN_RESTARTS"])
note(restart)
if restart < 2 and rank == "1":
    if len(sys.argv) > 2:
        launch.leave_word("the input is wrong")
    {end}
"""


def test_a_killed_worker_and_its_peers_are_started_again(tmp_path, capfd):
    body = FAILS_TWICE.format(end="os.kill(os.getpid(), signal.SIGKILL)")
    assert launch.run([str(tmp_path)], 2, script(tmp_path, body), max_restarts=2) == 0
    err = capfd.readouterr().err
    assert "rank 1 was killed by SIGKILL" in err
    assert "starting again from the newest checkpoint, restart 2 of at most 2" in err


def test_restarts_are_counted(tmp_path, capfd):
    body = FAILS_TWICE.format(end="os.kill(os.getpid(), signal.SIGKILL)")
    assert launch.run([str(tmp_path)], 2, script(tmp_path, body), max_restarts=1) == 128 + 9


def test_a_mistake_of_the_user_is_not_tried_again(tmp_path, capfd):
    body = FAILS_TWICE.format(end="sys.exit(2)")
    assert launch.run([str(tmp_path), "word"], 2, script(tmp_path, body), max_restarts=2) == 2
    assert "starting again" not in capfd.readouterr().err
