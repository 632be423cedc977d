import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from facetrain.processes import orderly_end


def end_oneself(number, left):
    with orderly_end():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            left.append(True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_orderly_end(number):
    left = []
    with pytest.raises(SystemExit) as caught:
        end_oneself(number, left)
    assert signal.getsignal(number) == signal.SIG_DFL
    assert caught.value.code == 128 + number
    assert left == [True]


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_command_leaves_no_worker(tmp_path, number):
    command = [sys.executable, "-m", "facetrain", "data", "demo", str(tmp_path / "demo"), "--workers", "2"]
    parent = subprocess.Popen([*command, "--people", "4000", "--head", "400"], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        workers: list[int] = []
        while len(workers) < 2 and time.monotonic() < end:
            time.sleep(0.05)
            tasks = Path(f"/proc/{parent.pid}/task").glob("*/children")
            workers = [int(word) for path in tasks for word in path.read_text().split()]
        assert len(workers) == 2
        assert (tmp_path / "demo" / ".train.rec.part").exists()
        time.sleep(0.5)
        parent.send_signal(number)
        assert parent.wait(10) == (143 if number == signal.SIGTERM else -number)
        while any(map(lives, workers)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(map(lives, workers))
    finally:
        parent.kill()
        parent.wait()
    assert (tmp_path / "demo").exists() == (number == signal.SIGKILL)


KEEPS = """
import resource, sys
from facetrain.processes import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import torch
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_kept_memory_is_not_fetched_from_the_system_again():
    freed, kept = (
        int(subprocess.run([sys.executable, "-c", KEEPS, word], capture_output=True, check=True, text=True).stdout)
        for word in ("free", "keep")
    )
    assert 5 * kept < freed  # 64 MiB ten times, in pages of 4 KiB, or of 2 MiB where the system gives huge ones
