"""A job on two hosts, two ranks each, that loses a worker, a host or the cable: how soon it is gone or back.

Hosts are network namespaces (:mod:`hosts`), torchrun and ``facetrain train`` are the real ones. What each scenario took
is printed (``pytest -s``); ``FACETRAIN_FAULTS=release`` repeats each of them.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import pytest
from hosts import PORT, Host, TwoHosts, why_not
from scale import scale
from tiny import tiny_recipe, write_tiny

import facetrain
from facetrain import recipe
from facetrain.config import Config
from facetrain.watch import deaf_launcher

pytestmark = pytest.mark.faults
TIMEOUT = 10.0  # train.timeout of these runs
START = 300.0
IDLE = 1.5  # seconds in which two idle cores start Python with torch (1.43 to 1.49); the goals' times are for such ones
ELASTIC = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
LAST_WORDS = re.compile(
    r"rank \d on host-[ab].*step \d+ .*(all-reduce|all-gather|reduce-scatter|broadcast) \d+.*; go on"
)


@dataclass
class Job:
    """``facetrain train`` on two hosts, or at first on one of them."""

    folder: Path
    hosts: tuple[Host, Host]
    nodes: str
    restarts: int
    environment: dict[str, str]

    def __post_init__(self) -> None:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        self.busy = max(1.0, (time.monotonic() - began) / IDLE)  # how much longer all takes beside other work
        self.agents: dict[str, Popen[bytes]] = {}
        self.output = self.folder / "run"

    def join(self, host: Host) -> None:
        """Start torchrun on a host, as docs/reliability.md says."""
        first = self.hosts[0]
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", self.nodes, "--nproc-per-node", "2"]
        command += ["--max-restarts", str(self.restarts), "--rdzv-id", "job", "--rdzv-backend", "c10d"]
        command += ["--rdzv-endpoint", f"{first.address}:{PORT}", "--local-addr", host.address]
        command += ["--rdzv-conf", f"is_host={int(host is first)},last_call_timeout=3,keep_alive_interval=2"]
        command += ["-m", "facetrain", "train", str(self.folder / "recipe.yaml")]
        path = os.pathsep.join([str(Path(facetrain.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, **self.environment}
        self.agents[host.name] = host.start(command, self.folder / host.name, **variables)

    def workers(self, host: Host) -> dict[int, int]:
        """Rank to process number of the ranks on a host."""
        found = {}
        for pid in deaf_launcher.children(self.agents[host.name].pid):
            try:
                words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            found |= {int(word[5:]): pid for word in words if word.startswith(b"RANK=")}
        return found

    def records(self) -> int:
        """Lines of metrics.jsonl: one a step."""
        file = self.output / "metrics.jsonl"
        return len(file.read_bytes().splitlines()) if file.exists() else 0

    def said(self) -> str:
        """Everything that both torchruns and their workers printed."""
        return "".join(
            (self.folder / host.name).read_text() for host in self.hosts if (self.folder / host.name).exists()
        )

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Seconds until ``condition`` holds."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, f"{what}: not within {seconds:.0f} s\n{self.said()[-5000:]}"
            time.sleep(0.05)
        return time.monotonic() - began

    def trained(self) -> bool:
        """Whether there is a checkpoint, and some steps besides."""
        return self.records() >= 30 and any((self.output / "checkpoints").glob("step_*/manifest.json"))

    def gone(self, seconds: float, timeout: float = 0.0) -> float:
        """Seconds until nothing of the job runs on any host: ``seconds`` of work at most, after ``timeout``."""
        left = timeout + seconds * self.busy
        return self.wait(lambda: not any(host.pids() for host in self.hosts), left, "the job is gone")

    def back(self, ranks: int, before: dict[int, int], seconds: float, timeout: float = 0.0) -> float:
        """Seconds until new processes, ``ranks`` of them, have made a step."""
        seen = 0

        def going_on() -> bool:
            nonlocal seen
            now = {
                rank: pid for host in self.hosts if host.name in self.agents for rank, pid in self.workers(host).items()
            }
            if len(now) != ranks or set(now.values()) & set(before.values()):
                seen = 0
                return False
            seen = seen or self.records()
            return self.records() > seen

        return self.wait(going_on, timeout + seconds * self.busy, f"{ranks} ranks are back")


def killed(job: Job) -> float:
    os.kill(job.workers(job.hosts[1])[3], signal.SIGKILL)
    took = job.gone(5)
    assert re.search(r"lost its peers at step \d+ .*: rank 3 on host-b is gone", job.said())
    return took


def killed_and_restarted(job: Job) -> float:
    before = job.workers(job.hosts[0]) | job.workers(job.hosts[1])
    os.kill(before[3], signal.SIGKILL)
    return job.back(4, before, 15)


def stopped(job: Job) -> float:
    os.kill(job.workers(job.hosts[1])[3], signal.SIGSTOP)
    took = job.gone(15, TIMEOUT)
    assert re.search(r"no step for \d+ s: rank 3 on host-b silent for \d+ s \(stopped or cut off\)", job.said())
    return took


def link_cut(job: Job) -> float:
    job.hosts[1].link(up=False)
    took = job.gone(15, TIMEOUT)
    assert re.search(r"no step for \d+ s: ranks 2, 3 on host-b silent for \d+ s", job.said())
    assert re.search(r"no step for \d+ s: rank [23] on host-b hears nothing from rank 0 on host-a", job.said())
    return took


def hanging_in_its_data(job: Job) -> float:
    """The decoding process of a rank stops, and the rank waits for images for ever."""
    for pid in deaf_launcher.children(job.workers(job.hosts[1])[3]):
        os.kill(pid, signal.SIGSTOP)
    took = job.gone(15, TIMEOUT)
    assert re.search(r"no step for \d+ s: rank 3 on host-b hangs at step \d+ in waiting for images", job.said())
    stacks = sorted(path.name[-9:-4] for path in (job.output / "stacks").iterdir())
    assert stacks == ["00000", "00001", "00002", "00003"]
    return took


def host_lost(job: Job) -> float:
    before = job.workers(job.hosts[0])
    job.hosts[1].lose()
    took = job.back(2, before, 15, TIMEOUT)
    assert re.search(r"no step for \d+ s: ranks 2, 3 on host-b silent for \d+ s", job.said())
    return took


def host_joins(job: Job) -> float:
    before = job.workers(job.hosts[0])
    job.join(job.hosts[1])
    return job.back(4, before, 60)


SCENARIOS = {  # name: (what happens, --nnodes, --max-restarts, variables of torchrun)
    "worker killed": (killed, "2", 0, {}),
    "worker killed, restarts": (killed_and_restarted, "2", 3, {}),
    "worker stopped": (stopped, "2", 0, {}),
    "link cut": (link_cut, "2", 0, {}),
    "decoder hangs": (hanging_in_its_data, "2", 0, {}),
    "host lost, goes on with one": (host_lost, "1:2", 3, {}),
    "host joins": (host_joins, "1:2", 3, ELASTIC),
}
ALONE = ("worker killed", "worker killed, restarts", "host lost, goes on with one")  # others mostly wait: two at once


def play(name: str, folder: Path, data: Path) -> float:
    """Seconds from what happens to the job being gone, or back."""
    scenario, nodes, restarts, environment = SCENARIOS[name]
    folder.mkdir()
    with TwoHosts() as hosts:
        job = Job(folder, hosts, nodes, restarts, environment)
        train = {"epochs": 100_000, "timeout": TIMEOUT, "checkpoint_every": 25, "resume": "auto"}
        settings = tiny_recipe(data, job.output, train=train).model_dump(mode="json")
        settings["data"]["workers"] = 1
        (folder / "recipe.yaml").write_text(recipe.dump(Config.model_validate(settings)))
        for host in hosts[: 1 if scenario is host_joins else 2]:
            job.join(host)
        job.wait(job.trained, START, "the job trains")
        took = scenario(job)
        if scenario in (killed, stopped, link_cut, hanging_in_its_data):
            assert all(agent.returncode != 0 for agent in job.agents.values() if agent.wait(5) is not None)
            lines = [line for line in job.said().splitlines() if LAST_WORDS.search(line)]
            assert lines, job.said()[-5000:]
            assert max(len(line.split("error: ")[-1].split("traceback : ")[-1]) for line in lines) <= 200
        return took


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_hosts(name, tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    data = write_tiny(tmp_path / "train.rec")
    count = scale(quick=1, ci=1, release=20)
    with ThreadPoolExecutor(1 if name in ALONE else 2) as pool:
        took = list(pool.map(lambda number: play(name, tmp_path / str(number), data), range(count)))
    print(json.dumps({"scenario": name, "times": count, "median": statistics.median(took), "longest": max(took)}))
