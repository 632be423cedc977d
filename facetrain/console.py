"""The console that tables, progress and notes go to."""

from __future__ import annotations

from rich.console import Console

_WIDTH_WITHOUT_TERMINAL = 110


def console(stderr: bool = False, quiet: bool = False) -> Console:
    """A rich console as wide as the terminal; into a file or a pipe wide enough that no table's cell is cut."""
    found = Console(stderr=stderr, quiet=quiet)
    return found if found.is_terminal else Console(stderr=stderr, quiet=quiet, width=_WIDTH_WITHOUT_TERMINAL)
