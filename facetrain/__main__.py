"""``python -m facetrain``: the same as the command ``facetrain``."""

import os
import sys

from facetrain import launch
from facetrain.cli import main

if __name__ == "__main__":
    code = main()
    if launch.under_torchrun():
        # A worker is done here. The interpreter would end the threads of process groups, which may want its lock to
        # free a tensor: it would abort, and torchrun would start a complete run again.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
