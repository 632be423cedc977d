"""Every mistake in the corpus is one line that helps, with exit code 2, before anything is started or written."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from bad_input import Case
from bad_input_cases import CASES
from bad_input_sandbox import build

from facetrain import cli

ROOT = Path(cli.__file__).parents[1]
SECONDS = 3  # of processor time
TRIES = 3  # a busy machine is not the command's fault, and the first start fills its caches
LONGEST = 200
UNSET = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "FACETRAIN_LAUNCHER")
LONG = {"where to write", "data sets, lists, pairs, results", "models, features, checkpoints", "protocols' meta files"}
IN_PROCESS = [  # of these kinds many load a network, or embed
    pytest.param(case, id=case.name, marks=[pytest.mark.faults] * (case.kind in LONG)) for case in CASES
]
STARTS = ("os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system", "subprocess.Popen")

# Ends the process where it starts another one, in whatever way Python has.
GUARDED = f"""
import os, runpy, sys, _posixsubprocess
def refuse(*what):
    os.write(2, f"started a process: {{what}}\\n".encode())
    os._exit(99)
sys.addaudithook(lambda event, words: event in {STARTS} and refuse(event, words))
_posixsubprocess.fork_exec = refuse
sys.argv[0] = "facetrain"
runpy.run_module("facetrain", run_name="__main__")
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A sandbox that nobody changes."""
    here = tmp_path_factory.mktemp("good")
    before = Path.cwd()
    os.chdir(here)
    try:
        build(here)
    finally:
        os.chdir(before)
    return here


@pytest.fixture(scope="module")
def shared(good, tmp_path_factory):
    """A copy that tests use one after the other, since none may change it but by its own files."""
    return shutil.copytree(good, tmp_path_factory.mktemp("shared") / "here", symlinks=True)


@pytest.fixture
def here(good, shared, monkeypatch):
    """The shared copy as the current directory; put right afterwards, whatever the test did to it."""
    monkeypatch.chdir(shared)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared / "cache"))
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    before = listing(shared)
    yield shared
    if listing(shared) != before:
        shutil.rmtree(shared)
        shutil.copytree(good, shared, symlinks=True)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Path to size and time of change; folders without both, in which a trial file may come and go.

    Of the cache only our part counts: onnxruntime and matplotlib keep things of their own there.
    """
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            about = os.lstat(os.path.join(parent, name))
            found[os.path.join(parent, name)] = (0, 0) if name in folders else (about.st_size, about.st_mtime_ns)
    return {
        name: about
        for name, about in found.items()
        if not name.startswith(f"{folder}/cache") or "facetrain/" in name[len(str(folder)) :]
    }


def check(case: Case, code: int, out: str, said: str) -> None:
    """What holds for every mistake."""
    assert (code, out) == (2, ""), said
    assert said.startswith("facetrain: error: ")
    assert said.count("\n") == 1
    assert said.endswith("\n")
    assert said[:-1].isprintable()
    assert len(said) <= LONGEST + 1
    assert "Traceback" not in said
    for part in case.says:
        assert part in said


def test_the_corpus_is_large_and_without_repetition():
    assert len(CASES) >= 200
    assert len({(case.words, str(case.files), str(case.environment)) for case in CASES}) == len(CASES)
    assert all(case.says for case in CASES)
    kinds = Counter(case.kind for case in CASES)
    assert kinds["entries that leave their folder"] >= 20
    commands = {" ".join(case.words[: 2 if case.words[0] in ("data", "eval") else 1]) for case in CASES if case.words}
    assert commands >= {"train", "config", "embed", "report", "export", "data pack", "data check", "data checksum"}
    assert commands >= {
        "data subset",
        "data demo",
        *(f"eval {one}" for one in ["lfw", "openset", "ijbb", "ijbc", "megaface", "cache"]),
    }


@pytest.mark.parametrize("case", IN_PROCESS)
def test_a_mistake_is_one_line_before_anything_is_started_or_written(here, capfd, monkeypatch, case):
    def refuse(*what: object, **more: object) -> None:
        pytest.fail(f"started a process: {what}")

    for name in ("subprocess.Popen", "multiprocessing.process.BaseProcess.start", "_posixsubprocess.fork_exec"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("os.fork", refuse)
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", refuse)
    case.prepare(here)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    before = listing(here)
    code = cli.main(case.words)
    check(case, code, *capfd.readouterr())
    assert listing(here) == before


@pytest.mark.faults
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_costs_seconds_and_one_line_in_a_process_of_its_own(here, case):
    case.prepare(here)
    before = listing(here)
    for _ in range(TRIES):
        before_it = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run(
            [sys.executable, "-c", GUARDED, *case.words],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(case.environment),
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=60,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (16 << 30,) * 2),
            check=False,
        )
        after_it = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after_it.ru_utime + after_it.ru_stime - before_it.ru_utime - before_it.ru_stime
        if seconds <= SECONDS:
            break
    check(case, ended.returncode, ended.stdout, ended.stderr)
    assert seconds <= SECONDS
    assert listing(here) == before


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
TOLD_BY_ONE = [
    ("train", "nope.yaml"),
    ("train", "r.yaml", "train.epoch=3"),
    ("train", "r.yaml", "data.path=gone"),
    ("train", "r.yaml", "output=same"),
    ("eval", "lfw", "text.onnx", "packed/heldout.bin", "--device", "cpu"),
]


@pytest.mark.faults
@pytest.mark.parametrize("words", TOLD_BY_ONE, ids=" ".join)
def test_of_two_ranks_under_torchrun_one_speaks(here, words):
    before = listing(here)
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "facetrain",
            *words,
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode != 0
    ours = [line for line in ended.stderr.splitlines() if line.startswith("facetrain: ")]  # torchrun says more
    assert len(ours) == 1
    assert len(ours[0]) <= LONGEST
    assert listing(here) == before


COMMANDS = [
    ("train", "r.yaml", "output=mounted/run"),
    ("train", "r.yaml", "output=mounted"),
    ("train", "r.yaml", "output=mounted/run", "--nproc", "2"),
    ("embed", "model.safetensors", "photos", "mounted/x.npz", "--device", "cpu"),
    ("eval", "lfw", "model.safetensors", "packed/heldout.bin", "--output", "mounted/x.json", "--device", "cpu"),
    ("export", "model.safetensors", "mounted/x.safetensors"),
    ("report", "same", "other", "--output", "mounted/x.html"),
    ("data", "pack", "photos", "mounted/out"),
    ("data", "demo", "mounted/out"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_read_only_mount_is_refused_at_the_start(here, words):
    """Also for root, to whom permissions mean nothing."""
    (here / "mounted").mkdir()
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no mount namespaces (unshare --mount)")
    script = 'mount -t tmpfs -o ro none mounted && exec "$@"'
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "facetrain", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = ended.stderr
    assert (ended.returncode, ended.stdout) == (2, ""), said
    assert said.count("\n") == 1
    assert "mounted" in said
    assert "cannot be written to: Read-only file system; choose another place" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody who is not")
def test_a_folder_of_somebody_else_is_refused_at_the_start(here):
    for path in (*here.rglob("*"), *here.parents[: len(here.parents) - 1]):
        os.chmod(path, 0o755 if path.is_dir() else 0o644, follow_symlinks=True)
    (here / "theirs").mkdir(mode=0o755)
    code = "import os, sys; os.setgid(65534); os.setuid(65534); from facetrain import cli; sys.exit(cli.main())"
    ended = subprocess.run(
        [sys.executable, "-c", code, "train", "r.yaml", "output=theirs/run"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "ModuleNotFoundError" in ended.stderr or "PermissionError" in ended.stderr:
        pytest.skip("nobody else may read this Python or this source")
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr == (
        "facetrain: error: output: theirs/run cannot be written to: Permission denied; choose another place\n"
    )
