"""MegaFace challenge 1 on FaceScrub: features of images or features made before, the devkit's lists, a table.

Everything that decides the numbers is a switch and is printed beside them, above all whether noisy images were cleaned.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.atomic import check_folder, check_result_file
from facetrain.console import console, print_table
from facetrain.data.progress import progress as progress_line
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation.megaface.data import Data, Loaded, load_features, make_features
from facetrain.evaluation.megaface.output import Layout, megaface_table, save_features, write_devkit_result
from facetrain.evaluation.megaface.scores import (
    CLEANED_DIM,
    Clean,
    Distractors,
    Outcome,
    Probes,
    Stage,
    Ties,
    clean_probes,
    identify,
    unit_features,
)
from facetrain.evaluation.result import Curve, Result, save_results
from facetrain.evaluation.scores import Rule

_SHOWN = 1_000_000_000  # comparisons from which on the search shows how far it is


@dataclass(frozen=True)
class Protocol:
    """The switches.

    ``clean``: what happens to the images of the noise lists, see :mod:`facetrain.evaluation.megaface.scores`.
    ``ties``: whether a mate that scores exactly as a distractor does loses (``miss``) or wins (``hit``). ``rule``: how
    a FPR picks its threshold. ``number``: which of the devkit's sets of distractors.
    """

    clean: Clean = "insightface"
    ties: Ties = "miss"
    rule: Rule = "strict"
    number: int = 1


@dataclass(frozen=True)
class Written:
    """What is written besides the table, each where a path is given."""

    output: Path | None = None
    """A .json file for the results."""
    devkit: Path | None = None
    """Folder for ``cmc_facescrub_megaface_ALGO_N_SET.json``, as the devkit names and fills them."""
    features: Path | None = None
    """Folder for the features."""
    layout: Layout = "devkit"
    """How features are laid out."""


def run_megaface(
    model: Path,
    data: Data,
    protocol: Protocol | None = None,
    written: Written | None = None,
    *,
    algo: str = "facetrain",
    flip: bool = True,
    batch_size: int = 256,
    cache: Path | None = None,
    skip_unreadable: bool = False,
    extract_only: bool = False,
    world: World | None = None,
) -> list[Result]:
    """Score a model, or features that were made before, by all ranks; rank 0 prints the table and writes the files.

    Args:
        model: what :func:`facetrain.evaluation.embedder.open_embedder` opens, or a folder of features: ``facescrub``
            and ``megaface`` as the devkit lays them out, or ``facescrub.npy`` and ``megaface.npy``, row i for image i
            of FaceScrub's list and of the list that has as many distractors.
        data: lists, images and noise lists.
        protocol: the switches.
        written: the files.
        algo: the name that ends features of the devkit's layout, and that its results carry.
        flip: add the embedding of the mirrored image; images only.
        batch_size: images at once on each rank.
        cache: folder for embeddings; None: none.
        skip_unreadable: leave unreadable probes out and put unreadable distractors out of reach.
        extract_only: write the features and score nothing.
        world: the ranks that share the work; None: this process alone, on the CPU.

    Returns:
        A result for each number of distractors, smallest first, the same on every rank.

    Raises:
        InputError: a list, an image, a feature or a noise list is missing or damaged, or a file cannot be written.
    """
    world, protocol, written = world or World(), protocol or Protocol(), written or Written()
    check_algo(algo)
    output = written.output
    check_result_file(output, ".json")
    for folder in (written.devkit, written.features):
        if folder is not None:
            check_folder(folder)
    started = time.monotonic()
    if extract_only and written.features is None:
        raise InputError("--extract-only needs --save-features, the folder to write to")
    data.probes()  # read first: what a folder that is not MegaFace's lacks above all
    noises = data.noises() if protocol.clean != "none" and not extract_only else (frozenset[str](), frozenset[str]())
    if is_features(model):
        loaded = load_features(model, data, algo, protocol.number, noises=protocol.clean != "none")
    else:
        loaded = make_features(
            model,
            data,
            protocol.number,
            world=world,
            flip=flip,
            batch_size=batch_size,
            cache=cache,
            skip_unreadable=skip_unreadable,
        )
    if written.features is not None:
        _save(written.features, loaded, algo, written.layout, world)
    if extract_only:
        return []
    results = score(loaded, noises, protocol, world, algo=algo, written=written, started=started)
    if world.rank == 0:
        alone = people_alone(loaded)
        if alone:
            console(stderr=True).print(
                f"note: {len(alone)} of FaceScrub's people have one image only, hence no mate, and are impostors only: "
                + ", ".join(alone[:5])
                + (", ..." if len(alone) > 5 else ""),
                highlight=False,
                markup=False,
            )
        print_table(*megaface_table(results))
        if output is not None:
            save_results(results, output)
    return results


def _save(folder: Path, loaded: Loaded, algo: str, layout: Layout, world: World) -> None:
    """Rank 0 writes the features; where it cannot, InputError on every rank."""
    problem = ""
    if world.rank == 0:
        try:
            save_features(folder, loaded, algo, layout)
        except InputError as error:
            problem = str(error)
    problem = world.broadcast_object(problem)
    if problem:
        raise InputError(problem)


def is_features(model: Path) -> bool:
    """Whether ``model`` is a folder of features rather than a model."""
    return model.is_dir() and any((model / name).exists() for name in ("facescrub", "facescrub.npy"))


def check_algo(algo: str) -> None:
    """InputError where the name cannot be a part of a file's name."""
    if not algo or not all(letter.isalnum() or letter in "-_." for letter in algo):
        raise InputError(f"--algo {algo!r} must be letters, digits, '-', '_' and '.'; it ends the names of files")


def score(
    loaded: Loaded,
    noises: tuple[frozenset[str], frozenset[str]],
    protocol: Protocol,
    world: World,
    *,
    algo: str = "facetrain",
    written: Written | None = None,
    started: float | None = None,
) -> list[Result]:
    """The results of features; see :func:`run_megaface`."""
    started = time.monotonic() if started is None else started
    rows = unit_features(loaded.probes, loaded.readable)
    far = loaded.distractors.dim == CLEANED_DIM and not rows[:, -1].any()
    if far and protocol.clean != "none":
        raise InputError(
            f"the features have {CLEANED_DIM} numbers, as insightface's script writes them when it cleans: use --clean "
            "none, or the features from before it"
        )
    probes, noisy = _probes(loaded, rows, noises[0], protocol.clean)
    of_noise = np.zeros(len(loaded.distractors), bool)
    if noises[1]:
        of_noise[:] = [path in noises[1] for path in loaded.distractor_paths]
    distractors = Distractors(loaded.distractors, loaded.gone, of_noise, protocol.clean, far=far)
    if protocol.clean != "none":
        cleaned = f"{protocol.clean} ({noisy} probes, {int(of_noise.sum())} distractors)"
    else:
        cleaned = "by insightface's script before" if far else "no"
    switches: dict[str, str | int | float | bool] = {
        "cleaned": cleaned,
        "ties": protocol.ties,
        "FPR rule": protocol.rule,
        "set": protocol.number,
        "probes": len(probes.rows),
        "flip": loaded.flip,
    }
    outcomes = sorted(_search(loaded, probes, distractors, protocol, world), key=lambda one: one.size)
    seconds = time.monotonic() - started
    if world.rank == 0 and written is not None and written.devkit is not None:
        for outcome in outcomes:
            write_devkit_result(written.devkit, outcome, algo, protocol.number)
    return [_result(loaded, outcome, switches, seconds) for outcome in outcomes]


def _probes(loaded: Loaded, rows: NDArray[np.float32], noises: frozenset[str], clean: Clean) -> tuple[Probes, int]:
    """The probes as they are searched with, and how many of them were noise."""
    names = [loaded.probe_paths[i] for i in loaded.readable.tolist()]
    _, people = np.unique([loaded.people[i] for i in loaded.readable.tolist()], return_inverse=True)
    noisy = np.array([name.rsplit("/", 1)[-1] in noises for name in names])
    return clean_probes(Probes(rows, people.astype(np.int64)), noisy, names, clean), int(noisy.sum())


def people_alone(loaded: Loaded) -> list[str]:
    """People of whom only one probe can be read."""
    images = Counter(loaded.people[i] for i in loaded.readable.tolist())
    return sorted(name for name, count in images.items() if count == 1)


def _search(
    loaded: Loaded, probes: Probes, distractors: Distractors, protocol: Protocol, world: World
) -> Iterator[Outcome]:
    total = sum(len(added) for chain in loaded.chains for _, added in chain)
    least = 0 if world.rank == 0 and total * len(probes.rows) >= _SHOWN else total + 1
    with progress_line("searching", total, "distractors", least=least) as progress:

        def own(added: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
            share = world.rows_of(len(added))
            for block in distractors.blocks(added[share.start : share.stop]):
                yield block
                progress(len(block) * world.size)

        for chain in loaded.chains:
            stages = [Stage(size, own(added)) for size, added in chain]
            yield from identify(probes, stages, ties=protocol.ties, rule=protocol.rule, world=world)


def _result(loaded: Loaded, outcome: Outcome, switches: dict[str, str | int | float | bool], seconds: float) -> Result:
    places, rates = outcome.cmc()
    size = outcome.size
    return Result(
        protocol="megaface",
        dataset=f"MegaFace, {size:,} distractors",
        model=loaded.fingerprint,
        model_name=loaded.name,
        switches=switches,
        metrics={f"rank-{rank}": outcome.rate(rank) for rank in (1, 10)},
        cells=tuple(outcome.cells),
        intervals=outcome.intervals,
        curves={"cmc": Curve(tuple((places + 1.0).tolist()), tuple(rates.tolist())), "roc": outcome.roc},
        images=len(loaded.probe_paths) + size,
        unreadable=len(loaded.probe_paths) - len(loaded.readable) + loaded.unreadable(size),
        seconds=seconds,
    )
