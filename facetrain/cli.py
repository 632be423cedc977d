"""The command line. Each command is thin and imports what is heavy inside, so that help is instant.

A user's mistake is one line on stderr and exit code 2; a run that cannot go on is one line and exit code 1. Under
several ranks one of them speaks.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from facetrain import __version__, launch
from facetrain.commands import checkpoint, data, evaluate, health
from facetrain.commands.options import BatchSize, Checkpoint, Device, DeviceOption, Flip, Nproc, spread
from facetrain.errors import InputError, RunError

_LONGEST = 200  # characters of a line about a user's mistake
_ABOUT_A_PATH = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
    *(errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG),
)

app = typer.Typer(
    help="Train, evaluate and export face recognisers. Each command's --help has an example.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.add_typer(data.app, name="data")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(evaluate.app, name="eval")
app.command(name="health", epilog="Example: FACETRAIN_HEARTBEAT=/tmp/beat facetrain health")(health.health)


class Format(StrEnum):
    """File formats of an exported model."""

    onnx = "onnx"
    safetensors = "safetensors"


class TableFormat(StrEnum):
    """Forms of a comparison's table."""

    markdown = "markdown"
    csv = "csv"
    json = "json"
    latex = "latex"


class Columns(StrEnum):
    """Columns of a comparison's table."""

    all = "all"
    table6 = "table6"


Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="a recipe: a YAML file")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE | KEY=VALUE]",
        help="further .yaml recipes, laid over CONFIG in their order, and keys, for example optim.lr=0.1",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"facetrain {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="print the version and leave")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: facetrain train configs/demo.yaml train.epochs=5 output=runs/mine --nproc 2")
def train(
    context: typer.Context,
    config: Config,
    overrides: Overrides = None,
    nproc: Nproc = None,
    restarts: Annotated[
        int,
        typer.Option(min=0, max=1000, help="how often workers that died or hang are started again from a checkpoint"),
    ] = 0,
) -> None:
    """Train as a recipe says. Relative paths in a recipe start at the current directory."""
    from facetrain import recipe

    resolved = recipe.load(config, overrides or ())

    def work() -> int:
        from facetrain import preflight

        inputs = preflight.check(resolved, int(os.environ.get("WORLD_SIZE", "1")))
        from facetrain.run import train  # seconds of imports: a mistake is told before them

        return train(resolved, inputs)

    def check(ranks: int) -> None:
        from facetrain import preflight

        preflight.check(resolved, ranks)

    spread(context, nproc, resolved.device, work, check, restarts)


@app.command(name="config", epilog="Example: facetrain config configs/demo.yaml optim.lr=0.1 > mine.yaml")
def show_config(config: Config, overrides: Overrides = None) -> None:
    """Print the resolved recipe, defaults and all, as YAML that can be used as a recipe."""
    from facetrain import recipe

    sys.stdout.write(recipe.dump(recipe.load(config, overrides or ())))


@app.command(epilog="Example: facetrain embed runs/demo photos/ embeddings.npz")
def embed(
    context: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="a run's folder, a checkpoint in it, an exported .safetensors file, or an .onnx file"
        ),
    ],
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="a .rec file, a folder per person, or a text file with a path a line"),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the .npz file to write: embeddings, labels, names")],
    flip: Flip = True,
    batch_size: BatchSize = 256,
    normalise: Annotated[bool, typer.Option("--normalise", help="scale embeddings to length 1")] = False,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="rows of NaN for damaged images")] = False,
    device: DeviceOption = Device.auto,
    nproc: Nproc = None,
) -> None:
    """Embed images into an .npz file."""

    def work() -> int:
        from facetrain.distributed import joined
        from facetrain.evaluation.npz import embed_to_npz

        with joined(device.value) as world:
            embedded = embed_to_npz(
                model,
                source,
                out,
                world=world,
                batch_size=batch_size,
                flip=flip,
                normalise=normalise,
                skip_unreadable=skip_unreadable,
            )
            if world.rank == 0:
                (count, size), skipped = embedded.shape, embedded.unreadable
                rest = f", {len(skipped)} unreadable images, the first: {skipped[0].reason}" if skipped else ""
                typer.echo(f"{out}: {count:,} embeddings of {size} numbers{rest}")
        return 0

    spread(context, nproc, device.value, work)


@app.command(epilog="Example: facetrain report plain=runs/a leap=runs/b leap=ijbc_b.json --format latex")
def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PATH", help="runs' folders, also copied ones, and .json files of facetrain eval"
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="the .html page; left out: comparison.html, or none")] = None,
    format: Annotated[TableFormat | None, typer.Option(help="print the table alone; no page without --output")] = None,
    table: Annotated[Path | None, typer.Option(help="a file for the table: .md, .csv, .json or .tex")] = None,
    columns: Annotated[Columns, typer.Option(help="of the table; table6: as LEAP's Table 6 has them")] = Columns.all,
) -> None:
    """Put runs and results side by side in one page; of one run alone, write its report.html again."""
    only = Path(sources[0]) if len(sources) == 1 else None
    if only is not None and only.is_dir() and not (output or format or table):
        from facetrain.evaluation.report import write_report

        typer.echo(write_report(only))
        return
    from facetrain.evaluation.comparison import compare

    compare(
        sources, output=output, format=format.value if format else None, table=table, table6=columns is Columns.table6
    )


@app.command(epilog="Example: facetrain export runs/demo face.onnx")
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the file to write")],
    format: Annotated[Format | None, typer.Option(help="left out: by the suffix of OUT")] = None,
) -> None:
    """Write the backbone to ONNX, checked with onnxruntime, or to safetensors."""
    from facetrain.export import export

    exported = export(checkpoint, out, format.value if format else None)
    agreement = ""
    if exported.difference is not None and exported.largest:
        agreement = f", onnxruntime within {exported.difference / exported.largest:.1e} of PyTorch, relative"
    typer.echo(f"{exported.path}: {exported.size / 1e6:.1f} MB{agreement}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its words; None takes the process's.

    Returns:
        The exit code: 0, 1 (a run that cannot go on), 2 (a user's mistake), 3 (a rank is lost), 128 + signal.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        launch.follow_launcher()
        result = app(args=words, prog_name="facetrain", standalone_mode=False, obj=words)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except (KeyboardInterrupt, typer.Abort):
        return _end("stopped by Ctrl-C", 130)
    except Exception as error:
        line, code = _line_and_code(error)
        if line is None:
            if launch.leave_word(f"{type(error).__name__}: {error}", error) and launch.under_our_launcher():
                return 1
            raise
        return _end(line, code)
    if result == 130:  # typer's answer to Ctrl-C
        return _end("stopped by Ctrl-C", 130)
    return result if isinstance(result, int) else 0


def _line_and_code(error: Exception) -> tuple[str | None, int]:
    """(message, exit code) of an error that needs no traceback; (None, 1) for a defect of ours."""
    if isinstance(error, InputError | RunError):
        return f"error: {error}", error.exit_code
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(getattr(error, "message", "")), 2
    if hasattr(error, "format_message"):  # typer's own, by whatever class its version has
        context = getattr(error, "ctx", None)
        where = f"; see {context.command_path} --help" if context is not None else ""
        return f"error: {error.format_message().rstrip('.')}{where}", 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"error: {error.filename or 'writing'}: {error.strerror}; free some space and run the command again", 2
    if isinstance(error, OSError) and error.errno in _ABOUT_A_PATH and error.filename:
        return f"error: {error.filename}: {error.strerror}", 2
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which must not be imported for this
        advice = "lower train.batch_size, raise train.accumulation or set model.gradient_checkpointing=true"
        return f"error: the GPU's memory ran out; {advice}", 1
    return None, 1


def _end(line: str, code: int) -> int:
    """Say one line, from one rank."""
    if line.startswith(("Usage:", "\nUsage:")):
        sys.stdout.write(line.strip("\n") + "\n")
        return code
    line = " ".join(line.split())
    if code == 2:  # cut where a name is long: the key is at the beginning, what to do at the end
        room = _LONGEST - len("facetrain: ")
        line = line if len(line) <= room else f"{line[: room - 73]} ... {line[-68:]}"
    if launch.under_torchrun():
        told = launch.leave_word(line.removeprefix("error: "))
        rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
        if (rank.isdigit() and size.isdigit() and 0 < int(rank) < int(size)) or (told and launch.under_our_launcher()):
            return code
    sys.stderr.write(f"facetrain: {line}\n")
    return code
