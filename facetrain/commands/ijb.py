"""``facetrain eval ijbb`` and ``ijbc``, which differ only in the names of their files; see :mod:`facetrain.cli`."""

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
    Model,
    NoCache,
    Nproc,
    Output,
    Rule,
    spread_scoring,
)

if TYPE_CHECKING:
    from facetrain.distributed import World


class Task(StrEnum):
    """Verification, identification, or both."""

    verification = "1:1"
    identification = "1:n"
    both = "both"


class IjbProtocol(StrEnum):
    """Whose set of switches."""

    insightface = "insightface"
    tface = "tface"
    adaface = "adaface"
    magface = "magface"
    facex_zoo = "facex-zoo"


class Fusion(StrEnum):
    """How media become a template."""

    sum = "sum"
    mean = "mean"


class Score(StrEnum):
    """How two templates are compared."""

    cosine = "cosine"
    arccos = "arccos"


class FpirRule(StrEnum):
    """Which threshold a FPIR picks."""

    exclusive = "exclusive"
    strict = "strict"


def add_to(app: typer.Typer) -> None:
    """The two commands."""
    for stem in ("ijbb", "ijbc"):
        _add(app, stem, f"IJB-{stem[-1].upper()}")


def _add(app: typer.Typer, stem: str, name: str) -> None:
    @app.command(
        name=stem,
        help=f"{name}: templates of many images, TPR@FPR of listed pairs (1:1), search in two galleries (1:n). "
        "Switches left out are the protocol's; all of them stand beside the result.",
        epilog=f"Example: facetrain eval {stem} runs/demo data/{stem.upper()} --protocol adaface",
    )
    def command(
        context: typer.Context,
        model: Model,
        root: Annotated[Path, typer.Argument(metavar="ROOT", help="the folder with meta/ and loose_crop/")],
        task: Annotated[Task, typer.Option(help="which task")] = Task.both,
        protocol: Annotated[
            IjbProtocol, typer.Option(help="whose switches; insightface made the published tables")
        ] = IjbProtocol.insightface,
        flip: Annotated[
            bool | None, typer.Option("--flip/--no-flip", help="add the embedding of the mirrored image")
        ] = None,
        keep_norm: Annotated[
            bool | None,
            typer.Option("--keep-norm/--unit-norm", help="weigh images by their embedding's length, or all alike"),
        ] = None,
        detector_score: Annotated[
            bool | None,
            typer.Option("--detector-score/--no-detector-score", help="weigh images by their detector score"),
        ] = None,
        unit_media: Annotated[
            bool | None, typer.Option("--unit-media/--no-unit-media", help="scale each medium's mean to length 1")
        ] = None,
        template: Annotated[Fusion | None, typer.Option(help="how media become a template")] = None,
        score: Annotated[Score | None, typer.Option(help="cosine, or 1 - angle / pi")] = None,
        rule: Annotated[
            Rule | None,
            typer.Option(help="nearest: the ROC's point nearest to the FPR; strict: never more than the FPR"),
        ] = None,
        fpir_rule: Annotated[
            FpirRule | None, typer.Option(help="strict: never more than the FPIR; exclusive: one false alarm fewer")
        ] = None,
        skip_unreadable: Annotated[
            bool, typer.Option("--skip-unreadable", help="leave damaged and missing images out, and count them")
        ] = False,
        intervals: Annotated[
            bool, typer.Option("--intervals/--no-intervals", help="95 % intervals by a bootstrap over subjects")
        ] = True,
        batch_size: BatchSize = 256,
        output: Output = None,
        cache: CacheOption = None,
        no_cache: NoCache = False,
        device: DeviceOption = Device.auto,
        nproc: Nproc = None,
    ) -> None:
        def score_all(world: World, folder: Path | None) -> None:
            from facetrain.evaluation.ijb.meta import IJBB, IJBC
            from facetrain.evaluation.ijb.protocol import protocol_of
            from facetrain.evaluation.ijb.run import run_ijb

            switches = protocol_of(
                protocol.value,
                flip=flip,
                keep_norm=keep_norm,
                detector_score=detector_score,
                unit_media=unit_media,
                template=template and template.value,
                score=score and score.value,
                fpr_rule=rule and rule.value,
                fpir_rule=fpir_rule and fpir_rule.value,
            )
            run_ijb(
                model,
                root,
                IJBB if stem == "ijbb" else IJBC,
                switches,
                task=task.value,
                skip_unreadable=skip_unreadable,
                intervals=intervals,
                batch_size=batch_size,
                cache=folder,
                output=output,
                world=world,
            )

        spread_scoring(context, nproc, device, cache, no_cache, score_all)
