"""What a result was made with: versions, commit, host, command."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import facetrain

_PACKAGES = ("torch", "numpy", "opencv-python-headless", "simplejpeg", "safetensors", "pydantic")


def versions() -> dict[str, str]:
    """Names to versions of facetrain, Python and the packages that numbers depend on."""
    found = {"facetrain": facetrain.__version__, "commit": commit(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def circumstances() -> dict[str, str]:
    """Versions and, beside them, the command line, the date (UTC), the host and its processor."""
    return versions() | {
        "command": _command(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "host": host(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": platform.platform(),
    }


def host() -> str:
    """This machine's name."""
    return socket.gethostname()


@functools.cache
def commit() -> str:
    """The source tree's git commit, with ``+changes`` where files differ from it; ``unknown`` outside a checkout."""
    root = Path(facetrain.__file__).parent.parent
    if not (root / ".git").exists():
        return "unknown"
    try:
        head, changes = (
            subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, timeout=10, check=True).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.strip() + ("+changes" if changes.strip() else "")


def _command() -> str:
    name = Path(sys.argv[0]).name
    return shlex.join([*(["python", "-m", "facetrain"] if name == "__main__.py" else [name]), *sys.argv[1:]])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
