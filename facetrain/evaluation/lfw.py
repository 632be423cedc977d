"""The LFW protocol on any model: insightface's .bin files or LFW's own list in, a table and a JSON file out.

What papers call "rank-1 on LFW" (LEAP's Table 6 among them) is this protocol's verification accuracy: LFW has no list
for identification.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from facetrain.atomic import check_result_file
from facetrain.console import print_table
from facetrain.data.encoded import Encoded
from facetrain.errors import InputError
from facetrain.evaluation.lfw_pairs import OfficialPairs, read_official_pairs
from facetrain.evaluation.pairs import DistinctImages, Protocol, Verification, names_apart, read_bin
from facetrain.evaluation.scores import FEW, Rule, fpr_text

if TYPE_CHECKING:
    from rich.table import Table

    from facetrain.distributed import World
    from facetrain.evaluation.embedder import Embedder
    from facetrain.evaluation.result import Result

PHOTOS = "central square, resized; aligned crops are expected"
"""What happens to the photos of LFW's own folder, said beside the numbers: uncropped ones score far lower."""


@dataclass(frozen=True, eq=False)
class Task:
    """N pairs to score: 2N ``images``, pair i being 2i and 2i + 1; the ``distinct`` ones, and which of them each is."""

    name: str
    images: Encoded
    distinct: Encoded
    row: NDArray[np.int64]
    same: NDArray[np.bool_]
    official: OfficialPairs | None = None


def run_lfw(
    model: Path,
    bins: Sequence[Path] = (),
    *,
    pairs: Path | None = None,
    photos: Path | None = None,
    by: Protocol = "insightface",
    flip: bool = True,
    batch_size: int = 256,
    rule: Rule = "strict",
    output: Path | None = None,
    cache: Path | None = None,
    world: World | None = None,
) -> list[Result]:
    """Evaluate a model on pair sets by all ranks; rank 0 shows progress, prints the table, writes ``output``.

    Args:
        model: whatever :func:`facetrain.evaluation.embedder.open_embedder` opens; features made elsewhere have a row
            for each of a set's 2N images, in its order.
        bins: insightface .bin files; read one after the other, and never decoded as a whole.
        pairs: LFW's own list, instead of or besides them; with ``photos``, the folder of its photos.
        photos: see ``pairs``.
        by: whose way of judging the folds: ``insightface`` or ``facex-zoo``.
        flip: add the embedding of the mirrored image.
        batch_size: images at once on each rank.
        rule: how a FPR picks its point of the ROC: ``strict`` or ``nearest``.
        output: a .json file for the results; None: none.
        cache: a folder for embeddings; None: none.
        world: the ranks that share the work; None: this process alone, on the CPU.

    Returns:
        One result of every set, the same on every rank but for its seconds.

    Raises:
        InputError: a file is missing or damaged, or ``output`` cannot be written.
    """
    from facetrain.distributed import World
    from facetrain.evaluation.embedder import open_embedder
    from facetrain.evaluation.result import result_table, save_results

    world = world or World()
    if not bins and pairs is None:
        raise InputError("no pair set given; name at least one .bin file, or LFW's list with --pairs and --images")
    if (pairs is None) != (photos is None):
        raise InputError("--pairs names LFW's list and --images the folder of its photos; give both or neither")
    check_result_file(output, ".json")
    embedder = open_embedder(model, world=world, batch_size=batch_size, cache=cache)
    # All lists are read once before anything is embedded, so that a damaged one is known at once.
    official = None if pairs is None or photos is None else read_official_pairs(pairs, photos)
    names = names_apart([(one.folder, one.name) for one in map(read_bin, bins)])
    results = [_scored(task, embedder, by, flip, rule) for task in _tasks(bins, names, pairs, official)]
    if world.rank == 0:
        print_table(*result_table(results))
        if output is not None:
            save_results(results, output)
    return results


def _tasks(
    bins: Sequence[Path], names: Sequence[str], pairs: Path | None, official: OfficialPairs | None
) -> Iterator[Task]:
    """One set at a time, so that the encoded images of one are in memory and not those of all."""
    for path, name in zip(bins, names, strict=True):
        one = read_bin(path)
        distinct = DistinctImages(one)
        yield Task(name, one, distinct, distinct.row, one.same)
    if official is not None and pairs is not None:
        photos, row = official.distinct()
        name = f"{official.root.resolve().name} ({pairs.name})"
        yield Task(name, official.photos, photos, row, official.same, official)


def _scored(task: Task, embedder: Embedder, by: Protocol, flip: bool, rule: Rule) -> Result:
    from facetrain.evaluation.result import Result, score_histogram, thinned
    from facetrain.evaluation.scores import roc
    from facetrain.evaluation.verifier import verify_set

    started = time.monotonic()
    if embedder.ready_made:
        rows = embedder.embed(task.images, flip=flip).rows
    else:
        rows = embedder.embed(task.distinct, flip=flip, what=f"embedding {task.name}").rows[task.row]
    found = verify_set(task.name, rows, task.same, flip=flip, rule=rule, by=by)
    switches: dict[str, str | int | float | bool] = {
        "accuracy": f"{by}'s, 10 folds in file order",
        "±": "standard error (ddof 1)" if by == "facex-zoo" else "standard deviation (ddof 0)",
        "pairs": len(task.same),
        "flip": embedder.shown_flip(flip),
        "FPR rule": rule,
    }
    if task.official is not None and not embedder.ready_made:
        switches["photos"] = PHOTOS
    points = roc(found.scores, found.same)
    return Result(
        protocol="lfw",
        dataset=task.name,
        model=embedder.fingerprint,
        model_name=embedder.name,
        switches=switches,
        metrics={"accuracy": found.accuracy, "accuracy_std": found.accuracy_std},
        cells=found.decided,
        intervals={} if task.official is None else _intervals(task.official, found),
        curves={"roc": thinned(points.fpr, points.tpr)},
        histogram=score_histogram(found.scores[found.same], found.scores[~found.same]),
        images=len(task.images if embedder.ready_made else task.distinct),
        seconds=round(time.monotonic() - started, 2),
    )


def _intervals(official: OfficialPairs, found: Verification) -> dict[str, tuple[float, float]]:
    """Of TPR@FPR, over the people of the list; a .bin does not say who is on its images."""
    from facetrain.evaluation.bootstrap import tpr_intervals

    people = official.people.reshape(-1, 2)
    return tpr_intervals(
        found.scores[found.same],
        people[found.same, 0],
        found.scores[~found.same],
        people[~found.same],
        [cell.fpr for cell in found.decided],
        subjects=int(people.max()) + 1,
        rule=found.rule,
    )


def verification_table(results: Sequence[tuple[str, Verification]]) -> tuple[Table, str]:
    """The console's table of (name, result), and what is to be said below it; results share their protocol."""
    from rich import box
    from rich.table import Table

    remarks = f"accuracy and TPR@FPR in %; {results[0][1].protocol}; in brackets: the impostor pairs accepted there"
    if any(cell.few for _, result in results for cell in result.decided):
        remarks += f"; * decided by fewer than {FEW} of them"
    fprs = sorted({cell.fpr for _, result in results for cell in result.decided})
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("set", no_wrap=True)
    table.add_column("pairs", justify="right")
    table.add_column("accuracy", justify="right", no_wrap=True)
    for fpr in fprs:
        table.add_column(f"TPR@{fpr_text(fpr)}", justify="right", no_wrap=True)
    for name, result in results:
        at = {cell.fpr: f"{100 * cell.tpr:.2f} ({cell.impostors}){'*' if cell.few else ' '}" for cell in result.decided}
        rates = [at.get(fpr, "–") for fpr in fprs]
        accuracy = f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}"
        table.add_row(name, f"{len(result.same)}", accuracy, *rates)
    return table, remarks
