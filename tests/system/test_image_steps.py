"""The Dockerfile's steps carried out in a clean root, and facetrain tried there (docker/run_steps.py)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("debootstrap", "unshare", "chroot", "nsenter", "setpriv", "ip")


def _missing():
    if os.name != "posix" or os.geteuid() != 0:
        return "needs root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    if subprocess.run(["unshare", "--mount", "--pid", "--net", "--fork", "true"], capture_output=True).returncode:
        return "needs namespaces, which are not allowed here"
    return None


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder for both tests, so that the bare Debian is made once; gigabytes, so it does not stay."""
    folder = tmp_path_factory.mktemp("image")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.faults
@pytest.mark.parametrize("base", [(), ("--torch-in-base",)], ids=["cpu", "torch in the base"])
def test_image(work, base):
    missing = _missing()
    if missing:
        pytest.skip(missing)
    command = [sys.executable, ROOT / "docker" / "run_steps.py", "--work", work, "--build-arg", "TORCH_INDEX=", *base]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all well" in done.stdout
    for line in ("left in", "another user", "torchrun", "health, nothing trains", "found unhealthy"):
        assert line in done.stdout
