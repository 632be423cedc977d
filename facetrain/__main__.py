"""``python -m facetrain``: the same as the command ``facetrain``."""

import os
import sys

from facetrain import launch
from facetrain.cli import main

if __name__ == "__main__":
    code = main()
    if launch.under_torchrun():
        # A worker is done here. What the interpreter would tidy up are threads of process groups whose peers have left:
        # at best that takes time, at worst it aborts, and torchrun would start a complete run again.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
