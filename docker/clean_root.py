"""Programs in a folder that holds a whole Linux: chroot in namespaces of their own, much as a container engine does it.

Needs root and Linux (unshare, chroot, mount, ip). Mounts live in a private namespace and end with the program.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FROM_OUTSIDE = ("/etc/resolv.conf", "/etc/hosts")  # as an engine provides them
# $1 root, $2 megabytes of /dev/shm, $3 user:group, $4 folder, $5 number of paths to show read-only; these; the command
_ENTER = r"""
set -e
root=$1 shm=$2 user=$3 folder=$4 count=$5
shift 5
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o "size=${shm}m" tmpfs "$root/dev/shm"
while [ "$count" -gt 0 ]; do
    mount --bind -o ro "$1" "$root$1"
    shift
    count=$((count - 1))
done
if ip link show lo 2>/dev/null | grep -q 'state DOWN'; then ip link set lo up; fi
exec chroot --userspec="$user" --groups="${user#*:}" "$root" /bin/sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
"""


def pip_settings() -> tuple[dict[str, str], list[Path]]:
    """This machine's pip configuration, so that pip finds the same packages in the root while it runs there.

    Returns:
        PIP_* variables, and the folders and files of this machine that they name.
    """
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = {}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        settings["PIP_" + key.upper().replace("-", "_")] = shlex.split(value)[0]
    paths = []
    for value in settings.values():
        for word in value.split():
            local = Path(word.removeprefix("file://"))
            if local.is_absolute() and local.exists():
                paths.append(local.parent if local.name == "simple" else local)
    proxies = {name: os.environ[name] for name in os.environ if name.lower().endswith("_proxy")}
    return settings | proxies, sorted(set(paths))


class Running:
    """A program in a root, as process 1 of its namespace."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log

    @property
    def first(self) -> int:
        """The program's process id, seen from outside."""
        own = self.process.pid
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
            if children:
                return int(children[0])
            time.sleep(0.05)
        raise RuntimeError("the program did not start")

    def signal(self, number: signal.Signals) -> None:
        """What ``docker stop`` and ``docker kill`` do."""
        os.kill(self.first, number)

    def wait(self, seconds: float) -> int:
        """The exit code; 128 + signal where one killed it."""
        code = self.process.wait(seconds)
        return code if code >= 0 else 128 - code

    def said(self) -> str:
        """All output so far."""
        return self.log.read_text()


class Root:
    """A folder that holds a whole Linux.

    Args:
        folder: the root.
        shm: megabytes of /dev/shm; 64 is what docker gives.
    """

    def __init__(self, folder: Path, shm: int = 64) -> None:
        self.folder, self.shm = folder.resolve(), shm

    @contextlib.contextmanager
    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        user: str = "0:0",
        folder: str = "/",
        shown: Sequence[Path] = (),
        network: bool = True,
        log: Path,
    ) -> Iterator[Running]:
        """Start a program, and kill what is left of it at the end of the block.

        Args:
            command: the program and its arguments.
            environment: all of its variables.
            user: ids, ``user:group``.
            folder: its current directory, in the root.
            shown: folders and files of this machine that it sees, read-only, under the same names.
            network: False: nothing but a loopback of its own.
            log: the file for its output.
        """
        own = ["--net"] if not network else []
        paths = [Path(name) for name in _FROM_OUTSIDE if Path(name).exists()] if network else []
        paths += shown
        with self._places(paths), log.open("w") as out:
            entering = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *own, "sh", "-c", _ENTER, "sh"]
            details = [str(self.folder), str(self.shm), user, folder, str(len(paths)), *map(str, paths)]
            process = subprocess.Popen(
                [*entering, *details, *command],
                env={"PATH": PATH, **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
            )
            try:
                yield Running(process, log)
            finally:
                if process.poll() is None:
                    # Whoever takes another user forgets --kill-child's signal, and one that is stopped stays for ever.
                    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(int(child), signal.SIGKILL)
                    process.kill()
                    process.wait()

    @contextlib.contextmanager
    def _places(self, paths: Sequence[Path]) -> Iterator[None]:
        """Somewhere to mount each path, taken away again where it was made for that."""
        made: list[Path] = []
        for path in paths:
            place = self.folder / str(path).lstrip("/")
            for above in [*reversed(place.relative_to(self.folder).parents[:-1]), place.relative_to(self.folder)]:
                target = self.folder / above
                if target.is_symlink() or target.exists():
                    continue
                if target == place and path.is_file():
                    target.touch()
                else:
                    target.mkdir()
                made.append(target)
        try:
            yield
        finally:
            for target in reversed(made):
                with contextlib.suppress(OSError):  # a folder in which the program left something stays
                    target.rmdir() if target.is_dir() else target.unlink()
