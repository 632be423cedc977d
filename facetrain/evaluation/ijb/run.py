"""IJB-B and IJB-C from a model and a folder to a table: what ``facetrain eval ijbc`` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from facetrain.atomic import check_result_file
from facetrain.console import console, print_table
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation.embedder import Embedder, Features, open_embedder
from facetrain.evaluation.extract import MEND, Unreadable
from facetrain.evaluation.ijb.crops import LooseCrops, check_crops
from facetrain.evaluation.ijb.meta import (
    PAIR_LIST,
    Dataset,
    Enrolled,
    Faces,
    Pairs,
    find_root,
    read_enrolled,
    read_faces,
    read_pairs,
)
from facetrain.evaluation.ijb.one_to_many import identify
from facetrain.evaluation.ijb.one_to_one import Findings, compare, template_features
from facetrain.evaluation.ijb.protocol import Protocol
from facetrain.evaluation.result import Result, result_table, save_results

Task = Literal["1:1", "1:n", "both"]
_NAMED = 5  # templates without a face that a message lists
_T = TypeVar("_T")


@dataclass(frozen=True)
class Plan:
    """What a task compares: rows of templates. ``pairs`` for 1:1; galleries and probes where their lists are there."""

    pairs: Pairs | None
    galleries: tuple[Enrolled, Enrolled] | None
    probes: Enrolled | None

    def subjects(self, templates: int) -> NDArray[np.int64] | None:
        """(T,) whom each template shows, from 0; None where a template is in none of the lists."""
        if self.galleries is None or self.probes is None:
            return None
        known = np.full(templates, -1, np.int64)
        for one in (*self.galleries, self.probes):
            known[one.rows] = one.subjects
        return np.unique(known, return_inverse=True)[1] if known.min() >= 0 else None


def run_ijb(
    model: Path,
    root: Path,
    dataset: Dataset,
    protocol: Protocol,
    *,
    task: Task = "both",
    skip_unreadable: bool = False,
    intervals: bool = True,
    batch_size: int = 256,
    cache: Path | None = None,
    output: Path | None = None,
    world: World | None = None,
) -> list[Result]:
    """Evaluate a model by all ranks; rank 0 reads the pairs, scores, prints the tables and writes ``output``.

    Args:
        model: whatever :func:`facetrain.evaluation.embedder.open_embedder` opens; from a file of features no crop is
            looked at.
        root: the folder with ``meta`` and ``loose_crop``.
        dataset: IJB-B or IJB-C.
        protocol: its switches.
        task: verification, identification, or both.
        skip_unreadable: leave damaged and missing images out, and count them.
        intervals: 95 % intervals by a bootstrap over subjects, where the 1:N lists say who they are.
        batch_size: images at once on each rank.
        cache: a folder for embeddings; None: none.
        output: a .json file for the results; None: none.
        world: the ranks that share the work; None: this process alone, on the CPU.

    Returns:
        One result for 1:1; for 1:N one for each gallery, then both together. The same on every rank.

    Raises:
        InputError: anything about the data, on every rank; before an image is decoded where it can be known before.
    """
    world = world or World()
    check_result_file(output, ".json")
    root = find_root(root, dataset)
    faces = read_faces(root, dataset)
    plan = _on_rank_0(world, lambda: read_plan(root, dataset, faces, task, intervals))
    embedder = open_embedder(model, world=world, batch_size=batch_size, cache=cache)
    if embedder.normalised and protocol.keep_norm:
        raise InputError(
            f"{model} holds embeddings of length 1, and protocol {protocol.name} weighs images by their length; make "
            "it again without --normalise, or give --unit-norm"
        )
    crops = LooseCrops(root / "loose_crop", faces.names, faces.landmarks)
    if not embedder.ready_made:
        check_crops(crops.folder, faces.names, dataset.file(root, "name_5pts_score.txt"), skip_unreadable)
    started = time.monotonic()
    features = embedder.embed(crops, flip=protocol.flip, skip_unreadable=True, what=dataset.name)
    if features.unreadable and not skip_unreadable:
        raise _refused(features.unreadable, faces, embedder.ready_made)

    def score() -> list[Result]:
        assert plan is not None
        return _scored(features, faces, plan, dataset, protocol, embedder, task, intervals, started)

    results: list[Result] = world.broadcast_object(_on_rank_0(world, score))
    if world.rank == 0:
        for one in (results[:1], results[1:]) if task == "both" else (results,):
            print_table(*result_table(one))
        if output is not None:
            save_results(results, output)
    return results


def read_plan(root: Path, dataset: Dataset, faces: Faces, task: Task, intervals: bool = True) -> Plan:
    """The lists that a task needs; for 1:1 those of 1:N only where intervals are wanted and they are there.

    Raises:
        InputError: a list is missing, damaged, or names a template without images.
    """
    ids = np.unique(faces.templates)
    lists = [dataset.file(root, f"1N_gallery_{name}.csv") for name in dataset.galleries]
    lists.append(dataset.file(root, "1N_probe_mixed.csv"))
    if task == "both":
        for alone, other, needed in (("1:1", "1:N", lists), ("1:n", "1:1", [dataset.file(root, PAIR_LIST)])):
            missing = [path.name for path in needed if not path.is_file()]
            if missing:
                raise InputError(
                    f"{root / 'meta'} lacks {', '.join(missing)}, which {other} needs; copy it there, or give "
                    f"--task {alone}"
                )
    first = second = probes = None
    if task != "1:1" or (intervals and all(path.is_file() for path in lists)):
        first, second, probes = (read_enrolled(path, dataset, ids) for path in lists)
    pairs = read_pairs(root, dataset, ids) if task != "1:n" else None
    return Plan(pairs, (first, second) if first and second else None, probes)


def _scored(
    features: Features,
    faces: Faces,
    plan: Plan,
    dataset: Dataset,
    protocol: Protocol,
    embedder: Embedder,
    task: Task,
    intervals: bool,
    started: float,
) -> list[Result]:
    readable = None
    if features.unreadable:
        readable = np.ones(len(faces.names), np.bool_)
        readable[[one.image for one in features.unreadable]] = False
    templates = template_features(features.rows, faces, protocol, readable)
    lost = templates.without_face
    if len(lost):
        console(stderr=True).print(f"{_without_face(lost)}: found by nobody", highlight=False, soft_wrap=True)
    found: list[tuple[str, str, Findings]] = []
    if plan.pairs is not None:
        subjects = plan.subjects(len(templates.ids)) if intervals else None
        found.append(("ijb-1:1", dataset.name, compare(templates, plan.pairs, protocol, subjects)))
    if task != "1:1" and plan.galleries is not None and plan.probes is not None:
        names = [*(f"{dataset.name} {name}" for name in dataset.galleries), dataset.name]
        each = identify(templates, plan.galleries, plan.probes, protocol, intervals)
        found += [("ijb-1:n", name, one) for name, one in zip(names, each, strict=True)]
    switches = protocol.switches() | {"flip": embedder.shown_flip(protocol.flip)}
    if len(lost):
        switches["templates without a face"] = len(lost)
    seconds = time.monotonic() - started
    return [
        Result(
            protocol=kind,
            dataset=name,
            model=embedder.fingerprint,
            model_name=embedder.name,
            switches=switches,
            metrics=one.metrics,
            cells=one.cells,
            intervals=one.intervals,
            curves=one.curves,
            histogram=one.histogram,
            images=len(faces.names),
            unreadable=len(features.unreadable),
            seconds=seconds,
        )
        for kind, name, one in found
    ]


def _refused(unreadable: list[Unreadable], faces: Faces, ready_made: bool) -> InputError:
    first = unreadable[0]
    readable = np.ones(len(faces.names), np.bool_)
    readable[[one.image for one in unreadable]] = False
    lost = np.setdiff1d(faces.templates, faces.templates[readable])
    what = f"{faces.names[first.image]}: {first.reason}" if ready_made else first.reason
    return InputError(
        f"{len(unreadable):,} of {len(faces.names):,} images cannot be read, the first: {what}; {MEND}"
        + (f" ({_without_face(lost)} then)" if len(lost) else "")
    )


def _without_face(lost: NDArray[np.int64]) -> str:
    shown = ", ".join(map(str, lost[:_NAMED].tolist())) + (", ..." if len(lost) > _NAMED else "")
    return (
        f"{len(lost):,} templates have no readable face: {shown}"
        if len(lost) > 1
        else f"template {shown} has no readable face"
    )


def _on_rank_0(world: World, work: Callable[[], _T]) -> _T | None:
    """What ``work`` gives, on rank 0; None on the others, and its InputError on all of them."""
    found, problem = None, ""
    if world.rank == 0:
        try:
            found = work()
        except InputError as error:
            problem = str(error)
    problem = world.broadcast_object(problem)
    if problem:
        raise InputError(problem)
    return found
