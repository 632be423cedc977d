"""``facetrain eval megaface``; see :mod:`facetrain.cli`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facetrain.commands.options import (
    BatchSize,
    CacheOption,
    Device,
    DeviceOption,
    Flip,
    NoCache,
    Nproc,
    Output,
    Rule,
    RuleOption,
    spread_scoring,
)

if TYPE_CHECKING:
    from facetrain.distributed import World


class Clean(StrEnum):
    """Whose way of treating noisy images."""

    insightface = "insightface"
    facex_zoo = "facex-zoo"
    none = "none"


class Ties(StrEnum):
    """Who comes first where a mate and a distractor score the same."""

    miss = "miss"
    hit = "hit"


class Layout(StrEnum):
    """How features are laid out."""

    devkit = "devkit"
    npy = "npy"


def add_to(app: typer.Typer) -> None:
    """Add the command to ``facetrain eval``."""
    app.command(
        epilog="Examples: facetrain eval megaface runs/demo megaface/ --save-features features/; then "
        "facetrain eval megaface features/ megaface/ --clean none"
    )(megaface)


def megaface(
    context: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="a run's folder, a checkpoint in it, an exported .safetensors file, an .onnx file, or a folder of "
            "features: facescrub and megaface as the devkit has them, or facescrub.npy and megaface.npy",
        ),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="a folder with the devkit's templatelists (or the lists), facescrub_images, megaface_images, "
            "facescrub_noises.txt and megaface_noises.txt",
        ),
    ],
    clean: Annotated[
        Clean, typer.Option(help="what becomes of the images in the noise lists; published tables: insightface")
    ] = Clean.insightface,
    ties: Annotated[
        Ties, typer.Option(help="a mate that scores as a distractor does: miss as the devkit, hit as FaceX-Zoo")
    ] = Ties.miss,
    rule: RuleOption = Rule.strict,
    sizes: Annotated[
        list[int] | None,
        typer.Option(
            "--size",
            min=1,
            help="how many distractors, may be repeated; one without a list of its own: the first of the largest list; "
            "left out: every list there is",
        ),
    ] = None,
    number: Annotated[int, typer.Option("--set", min=1, help="which of the devkit's sets of distractors")] = 1,
    lists: Annotated[Path | None, typer.Option(metavar="DIR", help="the devkit's lists, if not in DATA")] = None,
    facescrub_images: Annotated[Path | None, typer.Option(metavar="DIR", help="if not in DATA")] = None,
    megaface_images: Annotated[Path | None, typer.Option(metavar="DIR", help="if not in DATA")] = None,
    facescrub_noises: Annotated[Path | None, typer.Option(metavar="TXT", help="if not in DATA")] = None,
    megaface_noises: Annotated[Path | None, typer.Option(metavar="TXT", help="if not in DATA")] = None,
    algo: Annotated[
        str, typer.Option(help="the name that ends features' files, IMAGE_ALGO.bin, and names the devkit's results")
    ] = "facetrain",
    save_features: Annotated[Path | None, typer.Option(metavar="DIR", help="write the features there")] = None,
    layout: Annotated[
        Layout, typer.Option(help="devkit: a file for each image; npy: two matrices, rows in the lists' order")
    ] = Layout.devkit,
    extract_only: Annotated[bool, typer.Option("--extract-only", help="write the features and stop")] = False,
    devkit_results: Annotated[
        Path | None, typer.Option(metavar="DIR", help="write the devkit's cmc_facescrub_megaface_ALGO_N_SET.json there")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="leave damaged probes out, put damaged distractors out of reach")
    ] = False,
    flip: Flip = True,
    batch_size: BatchSize = 256,
    output: Output = None,
    cache: CacheOption = None,
    no_cache: NoCache = False,
    device: DeviceOption = Device.auto,
    nproc: Nproc = None,
) -> None:
    """MegaFace challenge 1 with FaceScrub, without the devkit: rank-1, CMC, TPR@FPR."""

    def score(world: World, folder: Path | None) -> None:
        from facetrain.evaluation.megaface.data import Data
        from facetrain.evaluation.megaface.run import Protocol, Written, run_megaface

        run_megaface(
            model,
            Data(
                folder=data,
                lists=lists,
                facescrub_images=facescrub_images,
                megaface_images=megaface_images,
                facescrub_noises=facescrub_noises,
                megaface_noises=megaface_noises,
                sizes=tuple(sorted(set(sizes or ()))),
            ),
            Protocol(clean=clean.value, ties=ties.value, rule=rule.value, number=number),
            Written(output=output, devkit=devkit_results, features=save_features, layout=layout.value),
            algo=algo,
            flip=flip,
            batch_size=batch_size,
            cache=folder,
            skip_unreadable=skip_unreadable,
            extract_only=extract_only,
            world=world,
        )

    spread_scoring(context, nproc, device, cache, no_cache, score)
