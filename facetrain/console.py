"""The console that tables, progress and notes go to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH_WITHOUT_TERMINAL = 110


def console(stderr: bool = False, quiet: bool = False) -> Console:
    """A rich console as wide as the terminal; into a file or a pipe wide enough that no table's cell is cut."""
    found = Console(stderr=stderr, quiet=quiet)
    return found if found.is_terminal else Console(stderr=stderr, quiet=quiet, width=_WIDTH_WITHOUT_TERMINAL)


def print_table(table: Table, remarks: str) -> None:
    """A table, and below it what is to be said about it, wrapped at the console's width rather than the table's."""
    out = console()
    out.print(table)
    out.print(remarks, highlight=False, markup=False)
