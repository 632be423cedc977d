"""Embeddings of a folder, a list or a .rec as one .npz file, written as they come."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from facetrain.atomic import check_result_file, result_file
from facetrain.data.encoded import Encoded
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation.extract import BLOCK, Unreadable, embed_blocks, refuse, shown_progress
from facetrain.evaluation.network import open_network


@dataclass(frozen=True)
class Embedded:
    """What :func:`embed_to_npz` wrote: (N, D) of all embeddings, and the images whose rows are NaN."""

    shape: tuple[int, int]
    unreadable: list[Unreadable]


def embed_to_npz(
    model: Path,
    source: Path,
    out: Path,
    *,
    world: World | None = None,
    batch_size: int = 256,
    flip: bool = True,
    normalise: bool = False,
    skip_unreadable: bool = False,
) -> Embedded:
    """Embed a .rec, a folder per person or a text list of paths, and write OUT.npz on rank 0, whole or not at all.

    The file holds ``embeddings`` (N, D) float32, ``labels`` (N,) int64 (-1 where the source has none), ``names`` (N,)
    str (path, or record), ``unreadable`` (numbers of images whose rows are NaN), ``model`` (its SHA-256),
    ``flip`` and ``normalised``. Rows are sums over the two mirror images as the backbone gives them, because their
    length tells an image's quality; ``normalise`` scales them to length 1. They are never in memory as a whole. Rank 0
    shows a progress line.

    ``model`` is whatever :func:`facetrain.evaluation.network.open_network` opens. Photos of a folder or a list are
    treated as :class:`facetrain.data.dataset.PhotoFiles` says.

    Returns:
        The shape, and the images that could not be read (``skip_unreadable``); the same on every rank.

    Raises:
        InputError: a path is unusable, or images are unreadable and not to be skipped, or all of them are; the same on
            every rank.
    """
    from facetrain.data.dataset import listed_images, open_images

    world = world or World()
    check_result_file(out, ".npz")
    images = listed_images(source) if source.is_file() and source.suffix != ".rec" else open_images(source)
    network = open_network(model, world.device)
    unreadable: list[Unreadable] = []
    about = {"flip": np.array(flip), "normalised": np.array(normalise), "labels": images.labels}
    about["model"] = np.array(network.fingerprint)
    with ExitStack() as stack:
        blocks = embed_blocks(
            network.backbone,
            images,
            input_size=network.input_size,
            unreadable=unreadable,
            batch_size=batch_size,
            flip=flip,
            world=world,
            progress=stack.enter_context(shown_progress("embedding", len(images), world)),
        )
        stack.enter_context(closing(blocks))
        rows = map(_unit, blocks) if normalise else blocks
        size = _write(out, rows, images, unreadable, skip_unreadable, about, world)
    return Embedded((len(images), size), unreadable)


def _write(
    out: Path,
    blocks: Iterator[NDArray[np.float32]],
    images: Encoded,
    unreadable: Sequence[Unreadable],
    skip_unreadable: bool,
    about: dict[str, NDArray],
    world: World,
) -> int:
    """Rank 0 writes what all ranks compute; where it cannot, InputError on every rank, as soon as it is known.

    Returns the embedding size.

    Args:
        unreadable: filled by ``blocks``, so complete when they are through.
        about: arrays that are small enough to be there as a whole.
    """
    first = next(blocks)
    problem: list[str] = []
    rows = _until(problem, itertools.chain([first], blocks), world)
    if world.rank == 0:
        try:
            with result_file(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
                _add(archive, "embeddings", np.dtype(np.float32), (len(images), first.shape[1]), rows)
                if not skip_unreadable or len(unreadable) == len(images):
                    refuse(unreadable, len(images), can_skip=True)
                about["unreadable"] = np.array([one.image for one in unreadable], np.int64)
                _add_names(archive, images)
                for name, array in about.items():
                    _add(archive, name, array.dtype, array.shape, [array])
        except InputError as error:
            problem.append(str(error))
    for _ in rows:  # the other ranks' share of the work
        pass
    for failure in world.broadcast_object(problem):
        raise InputError(failure)
    return int(first.shape[1])


def _until(problem: list[str], blocks: Iterable[NDArray], world: World) -> Iterator[NDArray]:
    """``blocks``, on every rank no further than rank 0 comes without a ``problem``."""
    for rows in blocks:
        yield rows
        if world.broadcast_object(problem):
            return


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms == 0, 1, norms), np.float32)


def _add_names(archive: zipfile.ZipFile, images: Encoded) -> None:
    """Where each image lies, as an array of texts, all as long as the longest."""
    places = range(len(images))
    kind = np.dtype(f"U{max(len(images.where(i)) for i in places)}")
    parts = (np.array([*map(images.where, places[a : a + BLOCK])], kind) for a in range(0, len(places), BLOCK))
    _add(archive, "names", kind, (len(places),), parts)


def _add(archive: zipfile.ZipFile, name: str, kind: np.dtype, shape: tuple[int, ...], parts: Iterable[NDArray]) -> None:
    """Add an array of which never more than one part is in memory, as ``np.savez`` would."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        npy.write_array_header_1_0(file, {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(part.tobytes())
