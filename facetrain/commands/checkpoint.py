"""``facetrain checkpoint ...``: what a run has saved, whether it is whole, and as a file for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from facetrain.errors import InputError
from facetrain.processes import orderly_end

app = typer.Typer(help="List, verify and convert checkpoints.", rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def _orderly(context: typer.Context) -> None:
    context.with_resource(orderly_end())


Saved = Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, its checkpoints, or one of them")]


@app.command(name="list", epilog="Example: facetrain checkpoint list runs/demo")
def show(run: Saved) -> None:
    """Show the checkpoints of a run. Their files' sizes are looked at; `verify` reads them."""
    from rich.table import Table

    from facetrain.checkpoints.survey import survey
    from facetrain.console import console

    table = Table("checkpoint", "step", "ranks", "size", "age", "", "state")
    for row in survey(run):
        table.add_row(*row.cells())
    console().print(table)


@app.command(epilog="Example: facetrain checkpoint verify runs/demo")
def verify(run: Saved) -> None:
    """Read every file of the checkpoints and compare it with the checksum taken when it was written; 2 at damage."""
    from facetrain.checkpoints.files import verify
    from facetrain.checkpoints.survey import size, which
    from facetrain.data.progress import progress

    paths, problems = which(run), []
    with progress("verify", sum(map(size, paths)), "bytes") as advance:
        for path in paths:
            try:
                manifest = verify(path, progress=advance)
                typer.echo(f"{path}: good, {len(manifest['files'])} files, {size(path):,} bytes")
            except InputError as problem:
                if path.exists():  # else a run that goes on has pruned it meanwhile
                    problems.append(str(problem))
    for line in problems[1:]:
        typer.echo(line, err=True)
    if problems:
        raise InputError(problems[0])


@app.command(epilog="Example: facetrain checkpoint convert runs/demo model.pt")
def convert(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="a run's folder, a checkpoint in it, or an exported .safetensors file"),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="a .safetensors file, or a .pt file as insightface has it")
    ],
) -> None:
    """Write the backbone alone, as .safetensors or in the layout of insightface's model.pt."""
    from facetrain.checkpoints.convert import convert

    remark = convert(path, out)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB" + (f"; {remark}" if remark else ""))
