"""Open-set evaluation of a model on any labelled set: images in, a table and a JSON file out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from facetrain.atomic import check_result_file
from facetrain.console import console, print_table
from facetrain.data.dataset import Images
from facetrain.data.outfolder import TRAIN
from facetrain.data.progress import progress as progress_line
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation.allpairs import pair_counts
from facetrain.evaluation.class_groups import Group, head_and_tail, open_labelled, smallest_count
from facetrain.evaluation.embedder import Features, open_embedder
from facetrain.evaluation.openset_scores import TOO_LOW, Protocol, Switches, check_group, score_group
from facetrain.evaluation.result import Result, interval_text, save_results, switch_text, tpr_name
from facetrain.evaluation.scores import FEW

if TYPE_CHECKING:
    from rich.table import Table

_COUNTS = ("people", "genuine pairs", "impostor pairs", "gallery", "mated probes", "non-mated probes")
_SHARED = ("flip", "FPR rule", "method", "head has more training images than", "seed")
_SHOWN_PAIRS = 10**8  # fewer are compared in a second or two


def run_openset(
    model: Path,
    data: Path,
    protocol: Protocol | None = None,
    *,
    classes_of: Path | None = None,
    head_threshold: int | None = None,
    spread_images: int | None = None,
    skip_unreadable: bool = False,
    batch_size: int = 256,
    output: Path | None = None,
    cache: Path | None = None,
    world: World | None = None,
) -> list[Result]:
    """Evaluate a model on a labelled set. All ranks embed; rank 0 scores, prints the table and writes ``output``.

    Args:
        model: see :func:`facetrain.evaluation.embedder.open_embedder`.
        data: a .rec, a folder per person, or a text list with labels.
        protocol: the switches; None: the defaults.
        classes_of: a training set whose classes the set's people are; adds a result for head and one for tail, each
            scored as a set of its own: pairs, gallery and probes are within the group.
        head_threshold: T: head people have more than T training images; None: the median of the set's people.
        spread_images: images of each person that the angular spread takes; None: as many as the person with the fewest
            has, of those with two or more.
        skip_unreadable: leave out images that cannot be read.
        batch_size: images at once on each rank.
        output: a .json file for the numbers; None: none.
        cache: a folder for embeddings; None: none.
        world: the ranks that share the work; None: this process alone, on the CPU.

    Returns:
        On rank 0 the results: the whole set's, then head's and tail's; none on other ranks.

    Raises:
        InputError: something is missing or damaged, labels are unfit, a group has no pairs of a kind, or the exact
            method would keep too many scores.
    """
    world, protocol = world or World(), protocol or Protocol()
    check_result_file(output, ".json")
    if head_threshold is not None and classes_of is None:
        raise InputError(f"--head-threshold {head_threshold} needs --classes-of with the training set that it is about")
    started = time.monotonic()
    images = open_labelled(data)
    groups, threshold = [Group("", np.arange(len(images)))], None
    if classes_of is not None:
        parts, threshold = head_and_tail(data, images, classes_of, head_threshold)
        groups += parts
    for group in groups:
        check_group(images.labels, group, protocol)
    embedder = open_embedder(model, world=world, batch_size=batch_size, cache=cache)
    features = embedder.embed(images, flip=protocol.flip, skip_unreadable=skip_unreadable)
    if world.rank != 0:
        return []
    each = spread_images or smallest_count(np.delete(images.labels, [one.image for one in features.unreadable]))
    results = []
    for group in groups:
        found = _score(features, images, group, protocol, each)
        about: Switches = {} if threshold is None else {"head has more training images than": threshold}
        results.append(
            replace(
                found,
                dataset=_name(data) + (f", {group.name}" if group.name else ""),
                model=embedder.fingerprint,
                model_name=embedder.name,
                switches=about | found.switches | {"flip": embedder.shown_flip(protocol.flip)},
                seconds=time.monotonic() - started,
            )
        )
    print_table(*openset_table(results))
    if protocol.intervals is None and protocol.method == "exact" and not all(one.intervals for one in results):
        console().print("without intervals where the pairs are many; --intervals takes the time", highlight=False)
    if output is not None:
        save_results(results, output)
    return results


def _score(features: Features, images: Images, group: Group, protocol: Protocol, each: int) -> Result:
    """A group's result, without what all groups share."""
    readable = Group(group.name, np.setdiff1d(group.which, [one.image for one in features.unreadable]))
    pairs = sum(pair_counts(images.labels[readable.which]))
    with progress_line("comparing", pairs, "pairs", least=_SHOWN_PAIRS) as progress:
        scored = score_group(
            features.rows, images.labels, readable, protocol, each=each, where=images.where, progress=progress
        )
    return Result(
        protocol="openset",
        dataset="",
        model="",
        model_name="",
        switches=scored.switches,
        metrics=scored.metrics,
        cells=scored.cells,
        intervals=scored.intervals,
        curves={"roc": scored.roc},
        histogram=scored.histogram,
        images=len(group.which),
        unreadable=len(group.which) - len(readable.which),
        figures=scored.figures,
    )


def openset_table(results: Sequence[Result]) -> tuple[Table, str]:
    """The console's table, a column for each group, and what is to be said below it."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    lines, first = _lines(results), results[0]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for one in results:
        table.add_column(escape(one.dataset), justify="right", overflow="fold")
    for name, texts in lines.items():
        table.add_row(escape(name), *texts)
    switches = switch_text({name: first.switches[name] for name in _SHARED if name in first.switches})
    remarks = ["rates in %; in round brackets: the impostor scores accepted there"]
    if any("*" in text for texts in lines.values() for text in texts):
        remarks.append(f"* decided by fewer than {FEW} of them")
    if any(one.intervals for one in results):
        remarks.append("in square brackets: 95 % interval over people")
    if "angle mean (rad)" in first.figures:
        each = first.switches["angle images of each"]
        remarks.append(f"angle: of an image to the mean of its person's others, {each} images of each person")
    model = f"model {first.model_name} ({first.model[:16]}); {switches}; {first.seconds:.1f} s"
    return table, f"{model}\n{'; '.join(remarks)}"


def _lines(results: Sequence[Result]) -> dict[str, list[str]]:
    """The table's lines: name to a text for each result."""
    columns = []
    for one in results:
        facts, figures = one.switches, one.figures
        column = {"images": f"{one.images:,}"}
        if one.unreadable:
            column["left out, unreadable"] = f"{one.unreadable:,}"
        column |= {name: f"{facts[name]:,}" for name in _COUNTS}
        for cell in one.cells:
            name = tpr_name(cell.fpr)
            column[name] = _rate(cell.tpr, cell.impostors) + interval_text(one, name)
        for name, value in one.metrics.items():
            alarms = figures.get(f"false alarms at {name.removeprefix('TPIR@')}")
            text = f"{100 * value:.2f}" if alarms is None else _rate(value, int(alarms))
            column[name] = text + interval_text(one, name)
        errors = [value for name, value in figures.items() if name.endswith(TOO_LOW)]
        if errors:
            column[f"TPR{TOO_LOW}"] = f"{100 * max(errors):.4f}"
        if "angle mean (rad)" in figures:
            column["angle (rad)"] = f"{figures['angle mean (rad)']:.3f} ± {figures['angle std (rad)']:.3f}"
        columns.append(column)
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, "–") for column in columns] for name in names}


def _rate(value: float, impostors: int) -> str:
    return f"{100 * value:.2f} ({impostors}){'*' if impostors < FEW else ' '}"


def _name(data: Path) -> str:
    """What to call a set: its file, or the folder where the file has the name that all have."""
    place = data.absolute()
    return place.parent.name if place.name == TRAIN else place.stem if place.is_file() else place.name
