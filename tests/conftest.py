"""Every test runs with one thread per process: more only spin at each other's barriers on a small machine."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Whoever starts the tests in a shell's background, or under nohup, has these ignored, and every child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
