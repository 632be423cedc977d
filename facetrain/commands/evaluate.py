"""``facetrain eval ...``: the protocols of the field; see :mod:`facetrain.cli`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facetrain.commands import ijb, megaface
from facetrain.commands.options import (
    BatchSize,
    CacheOption,
    Device,
    DeviceOption,
    Flip,
    Method,
    Model,
    NoCache,
    Nproc,
    Output,
    Rule,
    RuleOption,
    spread_scoring,
)
from facetrain.errors import InputError

if TYPE_CHECKING:
    from facetrain.distributed import World

app = typer.Typer(help="Score a trained model by a protocol of the field.", rich_markup_mode=None, no_args_is_help=True)
ijb.add_to(app)
megaface.add_to(app)


class Protocol(StrEnum):
    """Whose way of judging LFW's ten folds."""

    insightface = "insightface"
    facex_zoo = "facex-zoo"


@app.command(epilog="Example: facetrain eval lfw runs/demo lfw.bin cfp_fp.bin")
def lfw(
    context: typer.Context,
    model: Model,
    bins: Annotated[list[Path] | None, typer.Argument(metavar="BIN", help="insightface .bin files")] = None,
    pairs: Annotated[Path | None, typer.Option(metavar="TXT", help="LFW's own pairs.txt; needs --images")] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="its photos, aligned crops: DIR/NAME/NAME_0001.jpg")
    ] = None,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="insightface: 400 thresholds, the most accurate, ± deviation; facex-zoo: 1000 thresholds, the largest "
            "TPR - FPR, ± standard error (its tables are made with --no-flip)"
        ),
    ] = Protocol.insightface,
    flip: Flip = True,
    batch_size: BatchSize = 256,
    rule: RuleOption = Rule.strict,
    output: Output = None,
    cache: CacheOption = None,
    no_cache: NoCache = False,
    device: DeviceOption = Device.auto,
    nproc: Nproc = None,
) -> None:
    """Verification on pair sets: 10-fold accuracy and TPR@FPR.

    Rank-1 on LFW, as the LEAP paper's Table 6 names it, is this accuracy.
    """

    def score(world: World, folder: Path | None) -> None:
        from facetrain.evaluation.lfw import run_lfw

        run_lfw(
            model,
            bins or [],
            pairs=pairs,
            photos=images,
            by=protocol.value,
            flip=flip,
            batch_size=batch_size,
            rule=rule.value,
            output=output,
            cache=folder,
            world=world,
        )

    spread_scoring(context, nproc, device, cache, no_cache, score)


@app.command(name="cache", epilog="Example: facetrain eval cache --clear")
def show_cache(
    cache: CacheOption = None,
    clear: Annotated[bool, typer.Option("--clear", help="remove what no process is using")] = False,
) -> None:
    """List the embeddings that evaluations keep, with size, date, model and images, or remove them."""
    from facetrain.evaluation import cache_folder

    folder = cache_folder.cache_folder(cache)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"--cache {folder} is a file; expected a folder of embeddings")
    entries = [] if folder is None else cache_folder.clear(folder) if clear else cache_folder.kept(folder)
    for one in entries:
        typer.echo(f"{one.folder.name}  {one.size / 1e6:9,.1f} MB  {one.written:%Y-%m-%d %H:%M}  {one.text}")
    total = sum(one.size for one in entries) / 1e6
    typer.echo(f"{folder}: {total:,.1f} MB of embeddings{' removed' if clear else ''}")


@app.command(epilog="Example: facetrain eval openset runs/demo data/demo/heldout --output openset.json")
def openset(
    context: typer.Context,
    model: Model,
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="a .rec file, a folder per person, or a text file with a path and a label"),
    ],
    flip: Flip = True,
    batch_size: BatchSize = 256,
    rule: RuleOption = Rule.strict,
    method: Annotated[
        Method, typer.Option(help="histogram keeps no scores, for very large sets; TPR within a stated bound")
    ] = Method.exact,
    classes_of: Annotated[
        Path | None,
        typer.Option(metavar="TRAIN", help="the training set whose classes these people are: splits head and tail"),
    ] = None,
    head_threshold: Annotated[
        int | None, typer.Option(min=0, help="head: more training images than this; left out: the people's median")
    ] = None,
    spread_images: Annotated[
        int | None, typer.Option(min=2, help="images a person for the angular spread; left out: the fewest anybody has")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of who is enrolled in the open-set search")] = 0,
    intervals: Annotated[
        bool | None,
        typer.Option(
            "--intervals/--no-intervals", help="95 % intervals over people; left out: where they take seconds"
        ),
    ] = None,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="leave out damaged images")] = False,
    output: Output = None,
    cache: CacheOption = None,
    no_cache: NoCache = False,
    device: DeviceOption = Device.auto,
    nproc: Nproc = None,
) -> None:
    """All pairs of any labelled set: TPR@FPR, rank-1, TPIR@FPIR, angular spread; also for head and tail apart."""

    def score(world: World, folder: Path | None) -> None:
        from facetrain.evaluation.openset import run_openset
        from facetrain.evaluation.openset_scores import Protocol

        run_openset(
            model,
            data,
            Protocol(flip=flip, rule=rule.value, method=method.value, seed=seed, intervals=intervals),
            classes_of=classes_of,
            head_threshold=head_threshold,
            spread_images=spread_images,
            skip_unreadable=skip_unreadable,
            batch_size=batch_size,
            output=output,
            cache=folder,
            world=world,
        )

    spread_scoring(context, nproc, device, cache, no_cache, score)
