"""``facetrain data ...``: the commands that make, check and cut data sets; see :mod:`facetrain.cli`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from facetrain.processes import orderly_end

app = typer.Typer(help="Make, check and cut data sets.", rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def _orderly(context: typer.Context) -> None:
    context.with_resource(orderly_end())


Seed = Annotated[int, typer.Option(min=0, help="of everything drawn at random")]
Workers = Annotated[int | None, typer.Option(min=1, help="processes; left out: one per core")]


class Fit(StrEnum):
    """What happens to a photo that is not square."""

    crop = "crop"
    stretch = "stretch"
    pad = "pad"


@app.command(epilog="Example: facetrain data pack photos/ data/photos --held-out 10")
def pack(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="one folder of photos per person")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="the folder to write: train.rec, train.idx, property, heldout.bin")
    ],
    size: Annotated[int, typer.Option(min=16, max=1024, help="pixels a side")] = 112,
    held_out: Annotated[int, typer.Option(min=0, help="people kept apart for verification")] = 0,
    pairs: Annotated[int, typer.Option(min=1, help="verification pairs to draw of them")] = 6000,
    seed: Seed = 0,
    quality: Annotated[int, typer.Option(min=1, max=100, help="of the JPEGs")] = 95,
    fit: Annotated[Fit, typer.Option(help="crop the centre, stretch, or pad with black")] = Fit.crop,
    checksums: Annotated[bool, typer.Option(help="a train.crc32, by which flipped bits are found")] = True,
    force: Annotated[bool, typer.Option("--force", help="replace an earlier packed set")] = False,
    workers: Workers = None,
) -> None:
    """Pack a folder of photos per person into a .rec, with held-out people and verification pairs.

    Photos are turned as their orientation tag says; they may have up to 12,000 pixels a side and 100 Mpx.
    """
    from facetrain.data.pack import pack

    report = pack(
        folder,
        out,
        size=size,
        held_out=held_out,
        pairs=pairs,
        seed=seed,
        quality=quality,
        fit=fit.value,
        checksums=checksums,
        overwrite=force,
        workers=workers,
    )
    typer.echo(f"{report.out}: {report.images:,} images of {report.people:,} people for training")
    if report.held_out_people:
        apart = f"{report.held_out_images:,} images of {report.held_out_people:,} people"
        typer.echo(f"{report.out / 'heldout.bin'}: {report.pairs:,} pairs from {apart}")
    if report.ignored:
        typer.echo(f"ignored: {report.ignored}")
    for line in report.skipped:
        typer.echo(f"skipped: {line}", err=True)


@app.command(epilog="Example: facetrain data check data/photos/train.rec --plot classes.png")
def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="a .rec file or a folder per person")],
    plot: Annotated[Path | None, typer.Option(help="a .png for images per person")] = None,
    workers: Workers = None,
) -> None:
    """Decode every image, compare checksums, look at every label; exit code 2 where something is damaged."""
    from facetrain.data.check import TAIL_IMAGES, check

    report = check(path, plot, workers)
    typer.echo(f"{report.path}: {report.images:,} images of {report.people:,} people ({report.empty:,} without any)")
    typer.echo(f"images per person: {report.smallest} to {report.largest}, median {report.median:g}")
    typer.echo(f"people with more than {TAIL_IMAGES} images: {report.head:,}; with 1 to {TAIL_IMAGES}: {report.tail:,}")
    widest = max((people for _, _, people in report.histogram), default=0)
    for fewest, most, people in report.histogram:
        bar = "#" * (-(-40 * people // widest) if widest else 0)
        span = f"{fewest}..{most}" if most > fewest else str(fewest)
        typer.echo(f"{span:>12} images  {bar:<40}  {people:,} people")
    typer.echo("sizes: " + ", ".join(f"{size} ({count:,})" for size, count in list(report.sizes.items())[:5]))
    if report.plot:
        typer.echo(f"plot: {report.plot}")
    if report.ignored:
        typer.echo(f"ignored: {report.ignored}")
    for line in report.problems:
        typer.echo(f"damaged: {line}")
    if report.unnamed:
        typer.echo(f"damaged: {report.unnamed:,} more")
    report.raise_if_damaged()


@app.command(epilog="Example: facetrain data checksum ms1m/train.rec")
def checksum(
    rec: Annotated[Path, typer.Argument(metavar="REC", help="a .rec file or its folder")],
    force: Annotated[bool, typer.Option("--force", help="replace earlier checksums")] = False,
) -> None:
    """Write train.crc32, a checksum of every record, which all readers compare from then on.

    Decoders take most flipped bits for other pixels. Run 'facetrain data check' first: what is damaged already keeps
    its damage.
    """
    from facetrain.data.record_writer import write_checksums

    path, records = write_checksums(rec, force)
    typer.echo(f"{path}: checksums of {records:,} records")


@app.command(epilog="Example: facetrain data subset ms1m/train.rec data/h5k_t20k --head 5000 --tail 20000")
def subset(
    rec: Annotated[
        Path, typer.Argument(metavar="REC", help="the whole set: a .rec file, its folder, or a folder per person")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the folder to write: train.rec, train.idx, property")],
    head: Annotated[int, typer.Option(min=0, help="H: the largest classes, kept whole")] = 5000,
    tail: Annotated[int, typer.Option(min=0, help="T: the next largest, cut down")] = 20000,
    tail_images: Annotated[int, typer.Option(min=1, help="images that each of those keeps")] = 5,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="replace an earlier set")] = False,
) -> None:
    """Cut a long-tailed <H, T> set out of a large one."""
    from facetrain.data.longtail import subset

    report = subset(rec, out, head=head, tail=tail, tail_images=tail_images, seed=seed, overwrite=force)
    typer.echo(
        f"{report.out}: {report.head_classes:,} head classes with {report.head_images:,} images (at least "
        f"{report.smallest_head} each), {report.tail_classes:,} tail classes with {report.tail_images:,}"
    )


@app.command(epilog="Example: facetrain data demo data/demo")
def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the folder to write")],
    people: Annotated[int, typer.Option(min=4, help="people of the training set")] = 800,
    head: Annotated[int, typer.Option(min=2, help="how many of them have many photos")] = 160,
    size: Annotated[int, typer.Option(min=24, max=256, help="pixels a side")] = 40,
    held_out: Annotated[int, typer.Option(min=2, help="people never trained on, for verification")] = 200,
    held_out_images: Annotated[int, typer.Option(min=2, help="photos of each of those")] = 20,
    images_head: Annotated[int, typer.Option(min=1, help="photos of a head person")] = 60,
    images_tail: Annotated[int, typer.Option(min=1, help="photos of a tail person")] = 5,
    seen_images: Annotated[
        int, typer.Option(min=0, help="new photos of each trained person, for OUT/seen/train.rec")
    ] = 0,
    pairs: Annotated[int, typer.Option(min=1, help="verification pairs a set")] = 6000,
    difficulty: Annotated[
        float, typer.Option(min=0, max=10, help="strength of pose, light, blur; 1 is the demo's")
    ] = 1.0,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="replace an earlier set")] = False,
    workers: Workers = None,
) -> None:
    """Render the demonstration set: synthetic faces with a long tail, no download."""
    from facetrain.data.demo import write_demo

    report = write_demo(
        out,
        people=people,
        head=head,
        size=size,
        held_out=held_out,
        held_out_images=held_out_images,
        seed=seed,
        images_head=images_head,
        images_tail=images_tail,
        seen_images=seen_images,
        pairs=pairs,
        difficulty=difficulty,
        workers=workers,
        overwrite=force,
    )
    typer.echo(f"{out}: {report.images:,} images of {report.people:,} people for training")
