"""What is printed below tables."""

from __future__ import annotations

from rich.table import Table

from facetrain.console import print_table


def test_remarks_are_as_wide_as_the_console_and_taken_literally(capsys):
    table = Table("a")
    table.add_row("1")
    remarks = "[red]model[/red] runs/demo (12); " + "x" * 60
    print_table(table, remarks)
    assert capsys.readouterr().out.splitlines()[-1] == remarks
