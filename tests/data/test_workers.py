import os
import subprocess
import sys

import pytest

from facetrain.data import workers
from facetrain.data.workers import cores, default_workers, ordered_map
from facetrain.errors import InputError


def shout(suffix, word):
    return word.upper() + suffix


def die(_, word):
    os._exit(1)


def where(_, item):
    return os.getpid()


@pytest.mark.parametrize("processes", [1, 2])
def test_ordered_map(processes):
    words = [f"w{i}" for i in range(40)]
    assert list(ordered_map(shout, words, processes, "!")) == [f"W{i}!" for i in range(40)]


def test_two_maps_at_once_keep_their_own():
    one, two = (ordered_map(shout, "abcdefgh", 2, suffix) for suffix in "12")
    assert list(zip(one, two, strict=True)) == [(f"{c}1", f"{c}2") for c in "ABCDEFGH"]


def test_one_worker_is_this_process():
    assert set(ordered_map(where, range(5), 1, None)) == {os.getpid()}
    assert os.getpid() not in set(ordered_map(where, range(5), 2, None))


class SentOnce:
    """Counts, in a file, how often it is sent to a process."""

    def __init__(self, log):
        self.log = log

    def __reduce__(self):
        with open(self.log, "a") as file:
            file.write("sent\n")
        return SentOnce, (self.log,)


def test_what_is_common_is_not_sent_with_every_item(tmp_path):
    list(ordered_map(where, range(50), 2, SentOnce(str(tmp_path / "log"))))
    sent = (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []
    assert len(sent) <= 2


def test_a_dead_process_is_one_clear_line():
    with pytest.raises(InputError, match="a worker process died"):
        list(ordered_map(die, ["a"], 2, ""))


def test_cores(monkeypatch):
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    code += "from facetrain.data.workers import cores; print(cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert cores() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


def test_a_short_job_stays_in_this_process(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 8)
    assert (default_workers(1999), default_workers(2000)) == (1, 8)
    monkeypatch.setattr(workers, "cores", lambda: 200)
    assert default_workers(10**6) == 64
