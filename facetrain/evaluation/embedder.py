"""Embeddings of images by any model: facetrain's own, an ONNX file, or features that somebody else extracted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from facetrain.console import console
from facetrain.data.encoded import Encoded
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation import extract
from facetrain.evaluation.digest import images_digest
from facetrain.evaluation.embedding_cache import BLOCK, Entry, Key, claimed, read_entry
from facetrain.evaluation.extract import Unreadable, embed_blocks, refuse, shown_progress
from facetrain.evaluation.network import FIELD_SIZE, check_model, open_network
from facetrain.evaluation.ready_made import AS_GIVEN, ReadyMade, read_ready_made


@dataclass(frozen=True)
class Features:
    """Embeddings of N images: ``rows`` (N, D) float32, not normalised, where an unreadable image has a row of NaN.

    ``rows`` is a read-only memory map where it comes from a file, so that any number of processes share it.
    """

    rows: NDArray[np.float32]
    unreadable: list[Unreadable]


class Embedder:
    """A model that embeds images, by all ranks, through the cache where it has one; :func:`open_embedder` makes it.

    Attributes:
        name: the model as the user named it.
        fingerprint: SHA-256 that names the model in results; an exported .safetensors file has that of its checkpoint.
        input_size: pixels a side that images are made.
        ready_made: whether the rows come from a file of features, so that images are not looked at.
        normalised: whether they are known to have length 1.
    """

    def __init__(
        self,
        name: str,
        fingerprint: str,
        input_size: int,
        *,
        backbone: nn.Module | None = None,
        weights: str = "",
        features: ReadyMade | None = None,
        world: World | None = None,
        batch_size: int = 256,
        cache: Path | None = None,
    ) -> None:
        """Either ``backbone``, in evaluation mode on ``world.device``, with its ``weights``' hash, or ``features``."""
        assert (backbone is None) != (features is None)
        self.name, self.fingerprint, self.input_size = name, fingerprint, input_size
        self.world, self.batch_size, self.cache = world or World(), batch_size, cache
        self._backbone, self._weights, self._features = backbone, weights, features
        self.ready_made = features is not None
        self.normalised = features is not None and features.normalised

    def shown_flip(self, flip: bool) -> bool | str:
        """What stands beside a result that was asked for with ``flip``."""
        return flip if self._features is None or self._features.flip is not None else AS_GIVEN

    def embed(
        self, images: Encoded, *, flip: bool = True, skip_unreadable: bool | None = None, what: str = "embedding"
    ) -> Features:
        """Embeddings of all images, the same on every rank; every rank must call it, and rank 0 shows progress.

        Through a cache, blocks are written as they come: where the work is cut short, it goes on from the last block.

        Args:
            images: N encoded images, at least one.
            flip: add the embedding of the mirrored image; features from a file have it or not.
            skip_unreadable: rows of NaN for unreadable images, where not all of them are; None: they are refused, and
                whoever calls has no way around that.
            what: the job, for the progress line.

        Raises:
            InputError: no images, unreadable ones that are not to be skipped, features for other images or known not to
                be what ``flip`` asks for, or a cache that cannot be written; on every rank.
        """
        total = len(images)
        if total == 0:
            raise InputError("there are no images to embed")
        if self._features is not None:
            found = self._ready(self._features, total, flip)
        elif cache := self.world.broadcast_object(self.cache):
            found = self._through_cache(cache, images, flip, what)
        else:
            found = self._fresh(images, flip, what)
        if not skip_unreadable or len(found.unreadable) == total:
            refuse(found.unreadable, total, can_skip=skip_unreadable is not None)
        return found

    def _ready(self, made: ReadyMade, total: int, flip: bool) -> Features:
        features = made.rows
        if made.flip is not None and made.flip != flip:
            held, own, other = ("with", "--flip", "--no-flip") if made.flip else ("without", "--no-flip", "--flip")
            raise InputError(
                f"{self.name} was made {held} the mirrored image: score it with {own}, or make it again with {other}"
            )
        if len(features) != total:
            raise InputError(
                f"{self.name} holds {len(features):,} rows for {total:,} images; expected row i for image i"
            )
        step = 1 << 16
        bad = [
            int(first + i)
            for first in range(0, total, step)
            for i in np.flatnonzero(~np.isfinite(features[first : first + step]).all(axis=1))
        ]
        rows = np.asanyarray(features, np.float32)
        if bad:
            rows = np.array(rows)
            rows[bad] = np.nan
        return Features(rows, [Unreadable(i, f"row {i} of {self.name} is not finite") for i in bad])

    def _fresh(self, images: Encoded, flip: bool, what: str) -> Features:
        """Without a cache: in memory, every rank with a copy."""
        unreadable: list[Unreadable] = []
        rows: NDArray[np.float32] | None = None
        done = 0
        with self._blocks(images, flip, what, unreadable) as blocks:
            for block in blocks:
                if rows is None:
                    rows = np.empty((len(images), block.shape[1]), np.float32)
                rows[done : done + len(block)] = block
                done += len(block)
        assert rows is not None
        return Features(rows, unreadable)

    def _through_cache(self, cache: Path, images: Encoded, flip: bool, what: str) -> Features:
        total = len(images)
        key = Key(
            model=self._weights,
            images=images_digest(images, self.input_size, self.world, what),
            count=total,
            flip=flip,
            input_size=self.input_size,
            device=self.world.device.type,
        )
        with claimed(cache, key, self.name, self.world, images.where(0)) as entry:
            if entry is not None and not all(_failure(images, i, self.input_size) for i, _ in entry.unreadable):
                entry.forget()  # a disk or a network that failed for a moment must not do so for ever
            start = self.world.broadcast_object(entry.finished if entry else None)
            if start < total:
                self._fill(entry, images, flip, what, start)
            if entry is not None:
                origin = "kept in" if start < total else "taken from"
                console(stderr=True).print(
                    f"{what}: {total:,} embeddings, {entry.size / 1e6:,.1f} MB, {origin} the cache {entry.folder}",
                    highlight=False,
                    soft_wrap=True,
                )
            rows, unreadable = read_entry(cache, key)
            self.world.gather_objects(None)  # all have it open before anybody may remove it
        return Features(rows, [Unreadable(i, _failure(images, i, self.input_size) or told) for i, told in unreadable])

    def _fill(self, entry: Entry | None, images: Encoded, flip: bool, what: str, start: int) -> None:
        """Embed what is missing from image ``start`` on; rank 0, which has the ``entry``, writes it block by block."""
        unreadable: list[Unreadable] = []
        problem: list[str] = []
        with self._blocks(images, flip, what, unreadable, block=BLOCK, start=start) as blocks:
            for rows in blocks:
                if entry is not None:
                    try:
                        entry.append(rows, [(one.image, one.reason) for one in unreadable])
                    except InputError as error:
                        problem.append(str(error))
                unreadable.clear()
                for failure in self.world.broadcast_object(problem):
                    raise InputError(failure)

    @contextmanager
    def _blocks(
        self,
        images: Encoded,
        flip: bool,
        what: str,
        unreadable: list[Unreadable],
        start: int = 0,
        block: int = extract.BLOCK,
    ) -> Iterator[Iterator[NDArray[np.float32]]]:
        """The blocks of :func:`facetrain.evaluation.extract.embed_blocks` under a progress line, closed in any case."""
        assert self._backbone is not None
        with shown_progress(what, len(images), self.world) as progress:
            if start:
                progress(start)
            blocks = embed_blocks(
                self._backbone,
                images,
                input_size=self.input_size,
                unreadable=unreadable,
                batch_size=self.batch_size,
                flip=flip,
                world=self.world,
                progress=progress,
                block=block,
                start=start,
            )
            with closing(blocks):
                yield blocks


def open_embedder(
    model: Path, *, world: World | None = None, batch_size: int = 256, cache: Path | None = None
) -> Embedder:
    """Open whatever gives embeddings.

    Args:
        model: a run's folder (its newest good checkpoint is taken), a checkpoint, an exported ``.safetensors`` file, an
            ``.onnx`` file (see :mod:`facetrain.evaluation.onnx_model`), an ``.npz`` file of ``facetrain embed``, or an
            ``.npy`` file of features made elsewhere: (N, D) real numbers, row i of image i.
        world: the ranks that will share the work; None: this process alone, on the CPU.
        batch_size: images at once on each rank.
        cache: a folder for embeddings, see :func:`facetrain.evaluation.cache_folder.cache_folder`; None: none.

    Raises:
        InputError: no such model, damaged, or its packages are not installed.
    """
    world = world or World()
    check_model(model)
    if model.suffix in (".npy", ".npz") and model.is_file():
        features = read_ready_made(model)
        return Embedder(str(model), features.fingerprint, FIELD_SIZE, features=features, world=world)
    network = open_network(model, world.device)
    if len(set(world.gather_objects(network.weights))) > 1:
        raise InputError(f"{model} changed while it was opened; name one checkpoint in it, or try again")
    return Embedder(
        str(model),
        network.fingerprint,
        network.input_size,
        backbone=network.backbone,
        weights=network.weights,
        world=world,
        batch_size=batch_size,
        cache=cache,
    )


def _failure(images: Encoded, i: int, size: int) -> str:
    """Why image i cannot be read, told of where it lies now (a cache may be filled from another folder); "": it can."""
    try:
        images.decode(i, np.empty((size, size, 3), np.uint8))
    except InputError as error:
        return str(error)
    return ""
