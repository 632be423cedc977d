"""What an image of facetrain must do, tried in a root that docker/run_steps.py made.

As the image's user, with its environment, without a network: train, be stopped and go on, say how it is.
"""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from clean_root import Root, Running

STOPPED = 128 + signal.SIGTERM
_DEMO = "--people 12 --head 4 --size 24 --held-out 4 --held-out-images 4 --images-head 8 --images-tail 4 --pairs 20"
_SMALL = [
    "data.workers=1",
    "model.input_size=24",
    "model.width=4",
    "model.embedding_size=16",
    "train.batch_size=16",
    "train.log_every=1",
    "leap.track=false",
    "leap.head_threshold=null",
    "schedule.warmup_epochs=0",
    "evaluate.sets=[data/demo/heldout.bin]",
]
_RECIPE = "/opt/facetrain/configs/demo.yaml"


class CheckError(Exception):
    """Something that the image does not do."""


class _Image:
    """The image, and how its programs are started."""

    def __init__(
        self, root: Root, environment: Mapping[str, str], user: str, folder: str, entry: Sequence[str], work: Path
    ) -> None:
        self.root, self.environment, self.user, self.folder = root, environment, user, folder
        self.entry, self.work = entry, work

    def start(
        self, words: Sequence[str], *, entry: Sequence[str] | None = None, user: str | None = None, log: str = "run"
    ) -> AbstractContextManager[Running]:
        """``docker run [--entrypoint ENTRY] [--user USER] image WORDS``."""
        return self.root.start(
            [*(self.entry if entry is None else entry), *words],
            environment=self.environment,
            user=user or self.user,
            folder=self.folder,
            network=False,
            log=self.work / f"{log}.log",
        )

    def expect(
        self,
        what: str,
        words: Sequence[str],
        code: int = 0,
        entry: Sequence[str] | None = None,
        user: str | None = None,
    ) -> str:
        """Run to the end and look at the exit code; the output."""
        began = time.monotonic()
        with self.start(words, entry=entry, user=user) as running:
            ended = running.wait(120)
            said = running.said()
        _must(ended == code, f"{what}: exit code {ended}, expected {code}:\n{said[-3000:]}")
        _well(what, began)
        return said

    def output(self, name: str) -> Path:
        """A run's folder, on this machine."""
        return self.root.folder / "runs" / name


def check(
    root: Root,
    environment: Mapping[str, str],
    user: str,
    folder: str,
    commands: Mapping[str, Sequence[str]],
    work: Path,
) -> None:
    """Try everything.

    Args:
        root: the image.
        environment: its ENV.
        user: its USER, as numbers.
        folder: its WORKDIR.
        commands: its ENTRYPOINT, CMD and HEALTHCHECK.
        work: a folder for logs.

    Raises:
        CheckError: at the first thing that is not as it must be.
    """
    _must(user.split(":")[0] != "0", "the image's user is root")
    (root.folder / "etc" / "hosts").write_text(f"127.0.0.1 localhost {platform.node()}\n")  # as an engine provides it
    image = _Image(root, environment, user, folder, commands["ENTRYPOINT"], work)
    health = commands["HEALTHCHECK"]
    print(image.expect("facetrain --version", ["--version"]).strip())
    _must("Usage" in image.expect("no arguments: help", commands["CMD"]), "no help")
    versions = "import sys, torch; print('Python', sys.version.split()[0], 'torch', torch.__version__)"
    print(image.expect("python of the image", ["-c", versions], entry=["python"]).strip())
    image.expect("data demo", ["data", "demo", "data/demo", *_DEMO.split()])
    image.expect("one epoch, two workers", _train("first", 1, "--nproc", "2"))
    _must((image.output("first") / "report.html").exists(), "no report")
    image.expect("one epoch, another user", _train("other", 1), user="12345:12345")
    torchrun = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "facetrain"]
    image.expect("one epoch, torchrun", _train("torchrun", 1), entry=torchrun)
    image.expect("health, nothing trains", health[1:], entry=health[:1])
    for name, words in (("alone", ()), ("pair", ("--nproc", "2"))):
        for again in (False, True):
            _stopped(image, name, words, health, again)
    _frozen(image, health)


def _train(name: str, epochs: int, *words: str) -> list[str]:
    return ["train", _RECIPE, *_SMALL, f"train.epochs={epochs}", f"output=runs/{name}", *words]


def _stopped(image: _Image, name: str, words: Sequence[str], health: Sequence[str], again: bool) -> None:
    """SIGTERM to process 1, as ``docker stop`` sends it: the run saves and leaves; the same command goes on."""
    what = f"{name}: " + ("going on, SIGTERM again" if again else "SIGTERM")
    began, before = time.monotonic(), _steps(image.output(name))
    with image.start(_train(name, 100_000, *words), log=name) as running:
        _wait(lambda: _steps(image.output(name)) > before + 3, running, what)
        _must(_healthy(running, image, health), f"{what}: not healthy while it trains")
        asked = time.monotonic()
        running.signal(signal.SIGTERM)
        code = running.wait(60)
        seconds, said = time.monotonic() - asked, running.said()
    _must(code == STOPPED, f"{what}: exit code {code}, expected {STOPPED}:\n{said[-3000:]}")
    _must("saved in" in " ".join(said.split()), f"{what}: does not say that it saved:\n{said[-3000:]}")
    _must(("going on from" in said) == again, f"{what}: goes on, or does not:\n{said[-3000:]}")
    _must(any((image.output(name) / "checkpoints").iterdir()), f"{what}: no checkpoint")
    _well(f"{what}: left in {seconds:.1f} s", began)


def _frozen(image: _Image, health: Sequence[str]) -> None:
    """A run that stands still is found unhealthy."""
    began = time.monotonic()
    with image.start(_train("frozen", 100_000), log="frozen") as running:
        _wait(lambda: _steps(image.output("frozen")) > 3, running, "frozen")
        _must(_healthy(running, image, health), "frozen: not healthy while it trains")
        running.signal(signal.SIGSTOP)
        _wait(lambda: not _healthy(running, image, health), running, "frozen: found unhealthy")
    _well("frozen: found unhealthy", began)


def _healthy(running: Running, image: _Image, health: Sequence[str]) -> bool:
    """The HEALTHCHECK within a running container, as the engine starts it there."""
    within = [
        "nsenter",
        f"--target={running.first}",
        "--mount",
        "--pid",
        "--net",
        "--root",
        f"--wd={image.root.folder}",
    ]
    user, group = image.user.split(":")
    drop = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    asked = subprocess.run(
        [*within, *drop, *health], env=dict(image.environment), timeout=60, stdout=subprocess.DEVNULL
    )
    return asked.returncode == 0


def _steps(output: Path) -> int:
    """The last step that a run wrote down."""
    metrics = output / "metrics.jsonl"
    if not metrics.exists():
        return 0
    lines = [line for line in metrics.read_text().splitlines() if line.endswith("}")]
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


def _wait(ready: Callable[[], bool], running: Running, what: str) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        _must(running.process.poll() is None, f"{what}: it ended by itself:\n{running.said()[-3000:]}")
        _must(time.monotonic() < deadline, f"{what}: not within 120 s:\n{running.said()[-3000:]}")
        time.sleep(0.1)


def _must(condition: bool, otherwise: str) -> None:
    if not condition:
        raise CheckError(otherwise)


def _well(what: str, began: float) -> None:
    print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)
