"""Options that several commands share, and how a command spreads over processes; see :mod:`facetrain.cli`."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from facetrain import launch
from facetrain.errors import InputError


class Device(StrEnum):
    """Where a network runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Rule(StrEnum):
    """Which point of the ROC a false-positive rate picks."""

    strict = "strict"
    nearest = "nearest"


class Method(StrEnum):
    """How the scores of all pairs are counted."""

    exact = "exact"
    histogram = "histogram"


Nproc = Annotated[int | None, typer.Option(help="processes on this machine; left out: one per GPU, or 1 without GPUs")]
Checkpoint = Annotated[
    Path,
    typer.Argument(metavar="CHECKPOINT", help="a run's folder, a checkpoint in it, or an exported .safetensors file"),
]
Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="a run's folder, a checkpoint in it, an exported .safetensors file, an .onnx file, the .npz file of "
        "facetrain embed, or an .npy file of features made elsewhere, row i of image i",
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="folder for embeddings; left out: facetrain's under ~/.cache"),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="neither take embeddings from a cache nor keep them")]
Flip = Annotated[bool, typer.Option("--flip/--no-flip", help="add the embedding of the mirrored image")]
BatchSize = Annotated[int, typer.Option(min=1, help="images at once on each process")]
DeviceOption = Annotated[Device, typer.Option(help="auto takes a GPU where there is one")]
RuleOption = Annotated[Rule, typer.Option(help="strict: never more than that FPR; nearest: as some papers do")]
Output = Annotated[Path | None, typer.Option(help="a .json file for the numbers")]


def spread(
    context: typer.Context,
    nproc: int | None,
    device: str,
    work: Callable[[], int],
    check: Callable[[int], None] = lambda ranks: None,
) -> None:
    """Do ``work`` in this process, or run the user's own words (``context.obj``) in several; ends with its code."""
    if launch.under_torchrun():
        if nproc is not None and not launch.under_our_launcher():
            raise InputError(f"--nproc {nproc}: {os.environ['WORLD_SIZE']} processes run already; leave --nproc out")
        raise SystemExit(work())
    count = launch.workers(nproc, device)
    if count == 1:
        raise SystemExit(work())
    check(count)
    raise SystemExit(launch.run(context.obj, count))
