"""What a MegaFace run works on: which images, whose, in which numbers of distractors, and their features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.data.dataset import PhotoFiles
from facetrain.data.files import look_up
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation.embedder import Features as Embedded
from facetrain.evaluation.embedder import open_embedder
from facetrain.evaluation.megaface.files import (
    FACESCRUB_LIST,
    MEGAFACE_LIST,
    FeatureFiles,
    FeatureMatrix,
    Features,
    ImageList,
    distractor_lists,
    open_matrix,
    read_image_list,
    read_noises,
)
from facetrain.evaluation.ready_made import AS_GIVEN

Chain = list[tuple[int, NDArray[np.int64]]]
"""Numbers of distractors, rising, each with those that it adds to the one before."""


@dataclass(frozen=True)
class Data:
    """Where lists, images and noise lists lie.

    ``folder`` holds them under the names they are known by; a path given overrides. A number in ``sizes`` that has no
    list of its own means the first so many of the largest list; without ``sizes`` every list is used.
    """

    folder: Path
    lists: Path | None = None
    facescrub_images: Path | None = None
    megaface_images: Path | None = None
    facescrub_noises: Path | None = None
    megaface_noises: Path | None = None
    sizes: tuple[int, ...] = ()

    def list_folder(self) -> Path:
        """The folder of the devkit's lists: the one given, ``templatelists`` in the data, or the data themselves."""
        if self.lists is not None:
            return self.lists
        inner = self.folder / "templatelists"
        return inner if inner.is_dir() else self.folder

    def probes(self) -> ImageList:
        """FaceScrub's list."""
        folder = self.list_folder()
        if not folder.is_dir():
            raise InputError(
                f"{folder} is not a folder; expected one with the devkit's templatelists, {FACESCRUB_LIST} and "
                f"{MEGAFACE_LIST}_SIZE_SET"
            )
        return read_image_list(folder / FACESCRUB_LIST, people=True)

    def noises(self) -> tuple[frozenset[str], frozenset[str]]:
        """Noisy images: file names of FaceScrub's, paths of MegaFace's."""
        return (
            read_noises(self.facescrub_noises or self.folder / "facescrub_noises.txt"),
            read_noises(self.megaface_noises or self.folder / "megaface_noises.txt"),
        )

    def distractors(self, number: int) -> dict[int, ImageList]:
        """Size -> list of set ``number``, smallest first, of those that are needed."""
        found = distractor_lists(self.list_folder(), number)
        needed = [size for size in found if not self.sizes or size in self.sizes]
        if self.sizes and found and not set(self.sizes) <= set(found):
            needed = sorted({*needed, max(found)})
        return {size: read_image_list(found[size], people=False) for size in needed}


@dataclass(frozen=True)
class Loaded:
    """Everything that is scored.

    ``readable`` (Q,) are the probes with a feature; ``gone`` (N,) says which distractors have none. ``chains`` are the
    numbers of distractors to score, nested ones together. ``distractor_paths`` is empty where no list names them, and
    ``flip`` is what is shown of the mirrored image.
    """

    name: str
    fingerprint: str
    probes: Features
    probe_paths: list[str]
    people: list[str]
    readable: NDArray[np.int64]
    distractors: Features
    distractor_paths: list[str]
    gone: NDArray[np.bool_]
    chains: list[Chain]
    flip: bool | str = AS_GIVEN

    def unreadable(self, size: int) -> int:
        """How many of ``size`` distractors have no feature."""
        for chain in self.chains:
            if size in [one for one, _ in chain]:
                return sum(int(self.gone[added].sum()) for one, added in chain if one <= size)
        return 0


def load_features(root: Path, data: Data, algo: str, number: int, *, noises: bool) -> Loaded:
    """Features that were made before; see :func:`facetrain.evaluation.megaface.run_megaface`.

    Args:
        root: their folder.
        data: the lists.
        algo: what ends their names in the devkit's layout.
        number: which set of distractors.
        noises: whether noise lists will be used, which needs a list of the distractors.

    Raises:
        InputError: a list or a feature is missing or damaged, or they do not fit each other.
    """
    faces = data.probes()
    matrices = (root / "facescrub.npy").exists()
    if matrices:
        probes: FeatureFiles | FeatureMatrix = open_matrix(root / "facescrub.npy", faces.paths)
        rows = open_matrix(root / "megaface.npy")
        paths, sets = _of_rows(rows, data, number)
        if noises and not paths:
            raise InputError(
                f"{data.list_folder()} has no {MEGAFACE_LIST}_{len(rows)}_{number}, which says what image each row of "
                f"{rows.source} is, and cleaning needs it; give it, or use --clean none"
            )
        distractors: FeatureFiles | FeatureMatrix = FeatureMatrix(rows.matrix, rows.source, paths)
    else:
        probes = FeatureFiles(root / "facescrub", faces.paths, algo)
        paths, sets = _needed(data, number)
        distractors = FeatureFiles(root / "megaface", paths, algo)
    if probes.dim != distractors.dim:
        raise InputError(
            f"{root}: features of FaceScrub have {probes.dim} numbers and those of MegaFace {distractors.dim}; both "
            "must come from one model"
        )
    return Loaded(
        name=str(root),
        fingerprint="",
        probes=probes,
        probe_paths=faces.paths,
        people=faces.people,
        readable=np.arange(len(probes)),
        distractors=distractors,
        distractor_paths=paths,
        gone=np.zeros(len(distractors), bool),
        chains=chains(sets, len(distractors)),
    )


def make_features(
    model: Path,
    data: Data,
    number: int,
    *,
    world: World,
    flip: bool,
    batch_size: int,
    cache: Path | None,
    skip_unreadable: bool,
) -> Loaded:
    """Embed the images by all ranks; see :func:`facetrain.evaluation.megaface.run_megaface`.

    Raises:
        InputError: a list or an image is missing or damaged, or ``model`` is no model.
    """
    if model.suffix in (".npy", ".npz"):
        raise InputError(
            f"{model}: features of MegaFace are two files, facescrub.npy and megaface.npy, as --save-features with "
            "--layout npy writes them; name their folder"
        )
    faces = data.probes()
    paths, sets = _needed(data, number)
    embedder = open_embedder(model, world=world, batch_size=batch_size, cache=cache)
    faces_root = data.facescrub_images or data.folder / "facescrub_images"
    others_root = data.megaface_images or data.folder / "megaface_images"
    for root, files, what in ((faces_root, faces.paths, "FaceScrub"), (others_root, paths, "MegaFace")):
        _check_images(root, files, what, skip_unreadable)

    def embed(root: Path, files: Sequence[str], what: str) -> tuple[FeatureMatrix, NDArray[np.bool_]]:
        photos = PhotoFiles(root, files, np.full(len(files), -1))
        found: Embedded = embedder.embed(photos, flip=flip, skip_unreadable=skip_unreadable, what=what)
        gone = np.zeros(len(files), bool)
        gone[[one.image for one in found.unreadable]] = True
        return FeatureMatrix(found.rows, str(model), files), gone

    probes, missing = embed(faces_root, faces.paths, "FaceScrub")
    distractors, gone = embed(others_root, paths, "MegaFace")
    return Loaded(
        name=embedder.name,
        fingerprint=embedder.fingerprint,
        probes=probes,
        probe_paths=faces.paths,
        people=faces.people,
        readable=np.flatnonzero(~missing),
        distractors=distractors,
        distractor_paths=paths,
        gone=gone,
        chains=chains(sets, len(distractors)),
        flip=flip,
    )


def _check_images(root: Path, files: Sequence[str], what: str, missing_allowed: bool) -> None:
    """InputError, before any image is decoded, where listed ones are not there and may not be left out."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; expected one with the images that the list of {what} names")
    missing, outside = look_up(root, files)
    if outside:
        raise InputError(
            f"{root / files[outside[0]]}, in the list of {what}, is a link that leads out of {root}; copy the file "
            "itself there"
        )
    if missing and (len(missing) == len(files) or not missing_allowed):
        raise InputError(
            f"{root} lacks {len(missing):,} of the {len(files):,} images that the list of {what} names, the first "
            f"{files[missing[0]]}; copy the whole folder, or give --skip-unreadable"
        )


def _of_rows(rows: FeatureMatrix, data: Data, number: int) -> tuple[list[str], list[NDArray[np.int64]]]:
    """(paths of the rows, or [] where no list has as many; the distractors of each number) of a matrix."""
    found = distractor_lists(data.list_folder(), number)
    if not found:
        tens = [10**i for i in range(1, 9) if 10**i < len(rows)]
        sizes = data.sizes or (*tens, len(rows))
        return [], [np.arange(_at_most(size, len(rows), str(rows.source))) for size in sizes]
    if len(rows) not in found:
        raise InputError(
            f"{rows.source} has {len(rows):,} rows and the lists {', '.join(f'{size:,}' for size in found)} images; "
            "row i must be image i of one of them"
        )
    whole = read_image_list(found[len(rows)], people=False)
    index = {path: i for i, path in enumerate(whole.paths)}
    sets = []
    for size in data.sizes or [size for size in found if size <= len(rows)]:
        if size not in found:
            sets.append(np.arange(_at_most(size, len(rows), str(rows.source))))
            continue
        one = whole if size == len(rows) else read_image_list(found[size], people=False)
        strange = next((path for path in one.paths if path not in index), None)
        if strange is not None:
            raise InputError(
                f"{one.source}: {strange} is not in {whole.source}, so no row of {rows.source} is its feature"
            )
        sets.append(np.array([index[path] for path in one.paths]))
    return whole.paths, sets


def _needed(data: Data, number: int) -> tuple[list[str], list[NDArray[np.int64]]]:
    """(every path that a number of distractors needs, the distractors of each number)."""
    lists = data.distractors(number)
    if not lists:
        raise InputError(
            f"{data.list_folder()} has no {MEGAFACE_LIST}_SIZE_{number}; expected the devkit's lists there, or --lists"
        )
    index: dict[str, int] = {}
    sets = []
    for size in sorted(data.sizes or lists):
        largest = lists[max(lists)]
        own = lists[size].paths if size in lists else largest.paths[: _at_most(size, max(lists), str(largest.source))]
        sets.append(np.array([index.setdefault(path, len(index)) for path in own]))
    return list(index), sets


def _at_most(size: int, rows: int, source: str) -> int:
    if not 1 <= size <= rows:
        raise InputError(f"--size {size}: {source} has {rows:,} distractors; give a number in 1..{rows}")
    return size


def chains(sets: Iterable[NDArray[np.int64]], total: int) -> list[Chain]:
    """Numbers of distractors such that those that lie one in the other are searched in one go.

    Args:
        sets: which distractors belong to each number, of 0..total-1.
        total: N.
    """
    found: list[Chain] = []
    seen = np.zeros(total, bool)
    for one in sorted(sets, key=len):
        inside = np.zeros(total, bool)
        inside[one] = True
        if found and not (seen & ~inside).any():
            added = np.flatnonzero(inside & ~seen)
            if len(added):
                found[-1].append((len(one), added))
        else:
            found.append([(len(one), np.flatnonzero(inside))])
        seen = inside
    return found
