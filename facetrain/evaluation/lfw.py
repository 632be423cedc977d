"""The LFW protocol on a trained model: insightface's .bin files in, a table and a JSON file out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from facetrain.atomic import result_file
from facetrain.console import console
from facetrain.errors import InputError
from facetrain.evaluation.pairs import Verification
from facetrain.evaluation.scores import FEW, Rule, fpr_text

if TYPE_CHECKING:
    from rich.table import Table

    from facetrain.distributed import World


def run_lfw(
    checkpoint: Path,
    bins: Sequence[Path],
    *,
    flip: bool = True,
    batch_size: int = 256,
    rule: Rule = "strict",
    output: Path | None = None,
    world: World | None = None,
) -> list[tuple[str, Verification]]:
    """Evaluate a checkpoint on pair sets by all ranks; rank 0 shows progress, prints the table, writes ``output``.

    Args:
        checkpoint: a run, a checkpoint or an exported .safetensors file.
        bins: insightface .bin files, at least one.
        flip: add the embedding of the mirrored image.
        batch_size: images at once on each rank.
        rule: how a FPR picks its point of the ROC: ``strict`` or ``nearest``.
        output: a .json file for the numbers with their protocol; None: none.
        world: the ranks that share the work; None: this process alone, on the CPU.

    Returns:
        (name, result) of every set, the same on every rank.

    Raises:
        InputError: a file is missing or damaged, or ``output`` cannot be written.
    """
    from facetrain.checkpoint import fingerprint, load_backbone
    from facetrain.distributed import World
    from facetrain.evaluation.extract import shown_progress
    from facetrain.evaluation.verifier import Verifier

    world = world or World()
    if not bins:
        raise InputError("no pair set given; name at least one .bin file")
    if output is not None and (output.suffix != ".json" or not output.parent.is_dir()):
        raise InputError(f"output {output} must be a .json file in a folder that exists")
    backbone, model = load_backbone(checkpoint)
    verifier = Verifier(bins, model.input_size, batch_size, flip, rule)
    started = time.monotonic()
    with shown_progress("embedding", verifier.distinct_images, world) as progress:
        results = verifier.run(backbone.to(world.device), world, progress)
    seconds = time.monotonic() - started
    if world.rank == 0:
        name = fingerprint(checkpoint)
        out = console()
        out.print(verification_table(results))
        out.print(
            f"model {name[:16]}, {verifier.distinct_images:,} distinct images in {seconds:.1f} s", highlight=False
        )
        if output is not None:
            sets = {one: result.record() for one, result in results}
            report = {"model": name, "checkpoint": str(checkpoint), "seconds": round(seconds, 2), "sets": sets}
            report["protocol"] = results[0][1].protocol
            with result_file(output) as temporary:
                temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return results


def verification_table(results: Sequence[tuple[str, Verification]]) -> Table:
    """The console's table of (name, result), with the protocol below it; results share their rates and protocol."""
    from rich import box
    from rich.table import Table

    first = results[0][1]
    caption = f"accuracy and TPR@FPR in %; {first.protocol}; in brackets: the impostor pairs accepted there"
    if any(cell.few for _, result in results for cell in result.cells):
        caption += f"; * decided by fewer than {FEW} of them"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    table.add_column("set", no_wrap=True)
    table.add_column("pairs", justify="right")
    table.add_column("accuracy", justify="right", no_wrap=True)
    for cell in first.cells:
        table.add_column(f"TPR@{fpr_text(cell.fpr)}", justify="right", no_wrap=True)
    for name, result in results:
        rates = [f"{100 * cell.tpr:.2f} ({cell.impostors}){'*' if cell.few else ' '}" for cell in result.cells]
        accuracy = f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}"
        table.add_row(name, f"{len(result.same)}", accuracy, *rates)
    return table
