"""Two hosts on one machine: network namespaces joined by a veth pair, each with a host name of its own; needs root."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_numbers = itertools.count(1)
PORT = 29400


def why_not() -> str:
    """Why no hosts can be made here; empty where they can."""
    if sys.platform != "linux" or not all(shutil.which(tool) for tool in ("ip", "unshare")):
        return "two hosts need Linux with the tools ip and unshare"
    probe = f"ftprobe{os.getpid()}"
    for command in (["ip", "netns", "add", probe], ["ip", "netns", "exec", probe, "unshare", "--uts", "true"]):
        tried = subprocess.run(command, capture_output=True, text=True)
        if tried.returncode:
            return f"network namespaces are not allowed here: {tried.stderr.strip()[:100]}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""


class Host:
    """One of the two: a namespace and what runs in it."""

    def __init__(self, name: str, namespace: str, address: str, device: str) -> None:
        self.name, self.namespace, self.address, self.device = name, namespace, address, device

    def start(self, command: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Run a command there, its output and errors appended to ``log``."""
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--uts"]
        inside += ["sh", "-c", 'hostname "$0" && exec "$@"', self.name, *command]
        with open(log, "ab") as file:
            variables = {**os.environ, "GLOO_SOCKET_IFNAME": self.device, **environment}
            return subprocess.Popen(inside, stdout=file, stderr=file, env=variables, start_new_session=True)

    def pids(self) -> list[int]:
        """Every process that runs there."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def lose(self) -> None:
        """What a power cut leaves: nothing runs, and nothing tells the other host."""
        self.link(up=False)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def link(self, up: bool) -> None:
        """Plug the cable in or out."""
        _ip("-n", self.namespace, "link", "set", self.device, "up" if up else "down")


class TwoHosts:
    """``with TwoHosts() as (first, second)``; whatever still runs there ends with the context."""

    def __enter__(self) -> tuple[Host, Host]:
        pair = f"{os.getpid() % 100000}x{next(_numbers)}"
        self._hosts = tuple(
            Host(f"host-{letter}", f"ft{pair}{letter}", f"10.99.0.{number}", f"v{pair}{letter}")
            for number, letter in enumerate("ab", start=1)
        )
        for host in self._hosts:
            _ip("netns", "add", host.namespace)
        first, second = self._hosts
        _ip("-n", first.namespace, "link", "add", first.device, "type", "veth", "peer", "name", second.device)
        _ip("-n", first.namespace, "link", "set", second.device, "netns", second.namespace)
        for host in self._hosts:
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", host.device)
            for device in ("lo", host.device):
                _ip("-n", host.namespace, "link", "set", device, "up")
        return first, second

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in self._hosts:
            for pid in host.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _ip("netns", "del", host.namespace)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
