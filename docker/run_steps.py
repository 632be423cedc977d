"""Carry out a Dockerfile's steps without a container engine, in a clean root, and try the image that results.

    python docker/run_steps.py --work /var/tmp/image --debian bookworm --build-arg TORCH_INDEX=

Needs root, Linux and debootstrap (or --base with a root of your own). Each stage starts from a copy of the base, which
stands for the FROM image: a bare Debian with its Python, not the image of that name. Packages come from wherever pip on
this machine is told to find them; of that configuration nothing stays in the root. Then docker/image_checks.py runs
facetrain there, as the image's user, with the image's environment and no network.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dockerfile
import image_checks
from clean_root import PATH, Root, pip_settings
from dockerfile import Instruction, Stage

SOURCE = Path(__file__).resolve().parent.parent
_PACKAGES = "python3,python3-pip,python-is-python3,ca-certificates"  # what FROM's Python image has
_TORCH = "python -m pip install --break-system-packages --constraint /constraints.txt torch"


class StepError(Exception):
    """A step that did not end well."""


@dataclass
class State:
    """What instructions leave for those that follow."""

    root: Root
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    folder: str = "/"
    commands: dict[str, list[str]] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        """What an instruction may name."""
        return self.arguments | self.environment

    def inside(self, path: str) -> Path:
        """A path of the image, on this machine."""
        return self.root.folder / os.path.join(self.folder, path).lstrip("/")


class Builder:
    """Carries out stages, in a folder of their own each."""

    def __init__(self, work: Path, base: Path, arguments: Mapping[str, str]) -> None:
        self.work, self.base, self.arguments = work, base, arguments
        self.settings, self.shown = pip_settings()
        self.done: dict[str, State] = {}

    def build(self, stages: list[Stage]) -> State:
        """All stages; the last one's state."""
        for stage in stages:
            folder = self.work / f"stage-{stage.name}"
            earlier = self.done.get(stage.base)
            copy(earlier.root.folder if earlier else self.base, folder)
            state = State(Root(folder))
            if earlier:
                state.environment = dict(earlier.environment)
            for number, each in enumerate(stage.instructions, 1):
                began = time.monotonic()
                getattr(self, f"_{each.name.lower()}")(state, each)
                shown = each.rest if len(each.rest) <= 90 else each.rest[:87] + "..."
                taken = f"{time.monotonic() - began:6.1f} s"
                print(f"{taken}  {stage.name} {number}/{len(stage.instructions)}  {each.name} {shown}", flush=True)
            self.done[stage.name] = state
        return self.done[stages[-1].name]

    def run(self, state: State, command: str) -> None:
        """A shell command, with this machine's pip configuration."""
        log = self.work / "step.log"
        with state.root.start(
            ["/bin/sh", "-c", command],
            environment=self.settings | state.variables,
            user=state.user,
            folder=state.folder,
            shown=self.shown,
            log=log,
        ) as running:
            code = running.wait(3600)
        if code:
            raise StepError(f"{command}\nended with exit code {code}:\n{log.read_text()[-4000:]}")

    def _run(self, state: State, each: Instruction) -> None:
        self.run(state, each.rest)

    def _arg(self, state: State, each: Instruction) -> None:
        name, _, default = each.rest.partition("=")
        state.arguments[name] = self.arguments.get(name, dockerfile.expand(default, state.variables))

    def _env(self, state: State, each: Instruction) -> None:
        before = state.variables  # docker replaces a line's variables by what they were before it
        for word in each.words(before):
            name, _, value = word.partition("=")
            state.environment[name] = value

    def _copy(self, state: State, each: Instruction) -> None:
        options = each.options()
        *sources, target = [word for word in each.words(state.variables) if not word.startswith("--")]
        origin = self.done[options["from"]].root.folder if "from" in options else SOURCE
        into = state.inside(target)
        for source in sources:
            path = origin / source.lstrip("/")
            if path.is_dir():
                ignored = None if "from" in options else shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, into, symlinks=True, ignore=ignored, dirs_exist_ok=True)
            else:
                place = into / path.name if target.endswith("/") or len(sources) > 1 or into.is_dir() else into
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place, follow_symlinks=False)
        if "from" not in options:
            subprocess.run(["chown", "-R", "0:0", into], check=True)

    def _workdir(self, state: State, each: Instruction) -> None:
        state.folder = os.path.join(state.folder, each.words(state.variables)[0])
        state.inside(".").mkdir(parents=True, exist_ok=True)

    def _user(self, state: State, each: Instruction) -> None:
        state.user = each.words(state.variables)[0]
        if not all(part.isdigit() for part in state.user.split(":")):
            raise dockerfile.DockerfileError(f"line {each.line}: USER needs numbers here, user:group")

    def _volume(self, state: State, each: Instruction) -> None:
        for folder in each.command():
            state.inside(folder).mkdir(parents=True, exist_ok=True)

    def _noted(self, state: State, each: Instruction) -> None:
        state.commands[each.name] = each.command()

    _entrypoint = _cmd = _healthcheck = _noted

    def _said(self, state: State, each: Instruction) -> None:
        """Nothing to do: the engine's business."""

    _label = _stopsignal = _said


def copy(source: Path, target: Path) -> None:
    """A fresh copy of a whole root."""
    remove(target)
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)


def remove(folder: Path) -> None:
    """Remove a root, unless something is still mounted in it."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    if any(Path(place).is_relative_to(folder) for place in mounted):
        raise StepError(f"{folder}: something is mounted there")
    if folder.exists():
        shutil.rmtree(folder)


def debian(suite: str, folder: Path) -> Path:
    """A bare Debian with its Python, made once."""
    whole = folder / "usr" / "bin" / "python"  # of the last package
    if not whole.exists() or (folder / "debootstrap").exists():
        remove(folder)
        began = time.monotonic()
        command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", suite, str(folder)]
        apart = ["unshare", "--mount"]  # what it mounts must not outlive it
        done = subprocess.run([*apart, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise StepError(f"debootstrap ended with exit code {done.returncode}:\n{done.stdout[-2000:]}")
        print(f"{time.monotonic() - began:6.1f} s  debootstrap {suite}", flush=True)
    return folder


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=SOURCE / "docker" / "Dockerfile")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the roots, about 4 GB")
    parser.add_argument("--base", type=Path, help="a root that stands for the FROM image")
    parser.add_argument("--debian", default="bookworm", help="without --base: the release that debootstrap installs")
    parser.add_argument(
        "--torch-in-base", action="store_true", help="install torch into the base, as the GPU base has it"
    )
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--no-checks", action="store_true", help="do not run facetrain in the result")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.stderr.write("run_steps: this needs root, for chroot and mounts\n")
        return 2
    began = time.monotonic()
    arguments = dict(text.partition("=")[::2] for text in options.build_arg)
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        stages = dockerfile.stages(dockerfile.read(options.file), arguments)
        base = options.base or debian(options.debian, options.work / f"debian-{options.debian}")
        builder = Builder(options.work, base, arguments)
        if options.torch_in_base:
            builder.base = with_torch(builder, options.work / "base-with-torch")
        state = builder.build(stages)
        print(f"built in {time.monotonic() - began:.0f} s: {state.root.folder}", flush=True)
        if not options.no_checks:
            image_checks.check(state.root, state.environment, state.user, state.folder, state.commands, options.work)
    except (StepError, dockerfile.DockerfileError, image_checks.CheckError) as error:
        sys.stderr.write(f"run_steps: {error}\n")
        return 1
    print(f"all well after {time.monotonic() - began:.0f} s", flush=True)
    return 0


def with_torch(builder: Builder, folder: Path) -> Path:
    """The base with torch in its own Python, in the version of the constraints."""
    copy(builder.base, folder)
    shutil.copy(SOURCE / "tools" / "constraints.txt", folder / "constraints.txt")
    builder.run(State(Root(folder)), _TORCH)
    (folder / "constraints.txt").unlink()
    return folder


if __name__ == "__main__":
    sys.exit(main())
