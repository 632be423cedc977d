"""Options that several commands share, and how a command spreads over processes; see :mod:`facetrain.cli`."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facetrain import launch
from facetrain.errors import InputError

if TYPE_CHECKING:
    from facetrain.distributed import World


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
    restarts: int = 0,
) -> None:
    """Do ``work`` in this process, or run the user's own words (``context.obj``) in several; ends with its code.

    Where ``restarts`` are allowed, others do the work even if it is for one.
    """
    _check_ranks()
    if launch.under_torchrun():
        if nproc is not None and not launch.under_our_launcher():
            raise InputError(f"--nproc {nproc}: {os.environ['WORLD_SIZE']} processes run already; leave --nproc out")
        if restarts and not launch.under_our_launcher():
            raise InputError(f"--restarts {restarts}: torchrun starts workers again; use its --max-restarts {restarts}")
        raise SystemExit(work())
    count = launch.workers(nproc, device)
    if count == 1 and not restarts:
        raise SystemExit(work())
    check(count)
    raise SystemExit(launch.run(context.obj, count, max_restarts=restarts))


def spread_scoring(
    context: typer.Context,
    nproc: int | None,
    device: Device,
    cache: Path | None,
    no_cache: bool,
    score: Callable[[World, Path | None], object],
) -> None:
    """:func:`spread` of a protocol, which gets the ranks and the folder of embeddings; ends with 0."""

    def work() -> int:
        from facetrain.distributed import joined
        from facetrain.evaluation.cache_folder import cache_folder

        folder = cache_folder(cache, no_cache)
        with joined(device.value) as world:
            score(world, folder)
        return 0

    spread(context, nproc, device.value, work)


def _check_ranks() -> None:
    """What torchrun or a cluster says of this process among others must make sense before anything waits for them.

    Raises:
        InputError: a variable is missing, or has a value that cannot be.
    """
    given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if name in os.environ}
    if not given:
        return
    remedy = "start the command with torchrun, which sets it, or unset RANK and WORLD_SIZE"
    numbers = {"WORLD_SIZE": (1, 1 << 20), "RANK": (0, 1 << 20), "LOCAL_RANK": (0, 1 << 20)}
    if given.get("WORLD_SIZE") != "1":
        numbers["MASTER_PORT"] = (1, 1 << 16)
        given["MASTER_ADDR"] = os.environ.get("MASTER_ADDR", "")
    given |= {name: os.environ.get(name, "0" if name == "LOCAL_RANK" else "") for name in numbers}
    for name, text in given.items():
        least, beyond = numbers.get(name, (0, 0))
        if not text:
            raise InputError(f"{name} is not set in the environment, but {next(iter(given))} is; {remedy}")
        if name in numbers and not (text.isascii() and text.isdigit() and least <= int(text[:9]) < beyond):
            raise InputError(f"{name}={text} in the environment: expected a whole number from {least} on; {remedy}")
    if int(given["RANK"]) >= int(given["WORLD_SIZE"]):
        rank, size = given["RANK"], given["WORLD_SIZE"]
        raise InputError(f"RANK={rank} in the environment: expected less than WORLD_SIZE={size}; {remedy}")
