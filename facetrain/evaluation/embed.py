"""Embeddings of any images, by all ranks: in memory, as a file, or scored as pair sets."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import nn

from facetrain.data.images import Buffer
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation.extract import Encoded, Progress, Unreadable, embed_blocks
from facetrain.evaluation.pairs import PairSet, Verification, read_bin, verify
from facetrain.evaluation.scores import Rule


def embed(
    backbone: nn.Module,
    images: Encoded,
    *,
    input_size: int,
    batch_size: int = 256,
    flip: bool = True,
    world: World | None = None,
    skipped: list[Unreadable] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Embeddings of all images, on every rank; each rank embeds its share.

    Args:
        backbone: (n, 3, S, S) float32 in -1..1 -> (n, D), on ``world.device``; run in evaluation mode, then put back.
        images: N encoded images, at least one.
        input_size: S, pixels a side; other sizes are resized to it.
        batch_size: images at once on each rank.
        flip: add the embedding of the mirrored image. The sum is not normalised, as in insightface's verification.
        world: the ranks that share the work; None: this process alone.
        skipped: a list that takes the unreadable images, whose rows are then NaN; None: they are an error.
        threads: decoding threads of this rank; None: one a core it may use, at most 8.
        progress: called after each batch.

    Returns:
        (N, D) float32.

    Raises:
        InputError: unreadable images and no ``skipped``; raised on every rank, when all images were tried.
    """
    unreadable: list[Unreadable] = []
    blocks = embed_blocks(
        backbone,
        images,
        input_size=input_size,
        unreadable=unreadable,
        batch_size=batch_size,
        flip=flip,
        world=world,
        threads=threads,
        progress=progress,
    )
    rows = np.concatenate(list(blocks))
    if skipped is None:
        _refuse(unreadable, len(images))
    else:
        skipped += unreadable
    return rows


def _refuse(unreadable: Sequence[Unreadable], total: int) -> None:
    if unreadable:
        raise InputError(f"{len(unreadable)} of {total} images cannot be read, the first: {unreadable[0].reason}")


class Verifier:
    """Pair sets, read once and scored as often as asked, by all ranks; knows nothing of training.

    ``sets`` are the pair sets, in the order given.
    """

    def __init__(
        self,
        sets: Sequence[Path | PairSet],
        input_size: int,
        batch_size: int = 256,
        flip: bool = True,
        rule: Rule = "strict",
    ) -> None:
        """Read the .bin files; InputError where one is unreadable or two have one name."""
        self.sets = [one if isinstance(one, PairSet) else read_bin(Path(one)) for one in sets]
        self.input_size, self.batch_size, self.flip = input_size, batch_size, flip
        self.rule: Rule = rule
        names = [one.name for one in self.sets]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two pair sets are named {name}; results are kept by that name, so rename one file")

    def run(
        self, backbone: nn.Module, world: World | None = None, progress: Progress | None = None
    ) -> list[tuple[str, Verification]]:
        """(name, result) of every set, the same on every rank; the backbone's mode is left as it was.

        Raises:
            InputError: an image of a set cannot be read, or an embedding is not finite.
        """
        results = []
        for one in self.sets:
            rows = embed(
                backbone,
                one,
                input_size=self.input_size,
                batch_size=self.batch_size,
                flip=self.flip,
                world=world,
                progress=progress,
            )
            try:
                results.append((one.name, verify(rows, one.same, flip=self.flip, rule=self.rule)))
            except InputError as error:
                raise InputError(f"pair set {one.name}: {error}") from None
        return results


class ListedImages:
    """A text file with one image a line, ``path`` or ``path label``; relative paths start at the file's folder.

    A label is a whole number behind the last blank; all lines have one, or none has and the labels are -1.
    """

    def __init__(self, path: Path) -> None:
        """Read the list; InputError where it is unreadable, empty, or has labels on some lines only."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise InputError(f"image list {path} cannot be read: {reason}; expected one image path a line") from None
        self.paths: list[Path] = []
        labels: list[int | None] = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            *front, last = line.strip().rsplit(maxsplit=1)
            label = int(last) if front and last.lstrip("-").isdecimal() else None
            self.paths.append(path.parent / (line.strip() if label is None else front[0]))
            labels.append(label)
            if (label is None) != (labels[0] is None):
                raise InputError(f"{path}:{number}: label a line or none; the first line has {labels[0]}, this {label}")
        if not self.paths:
            raise InputError(f"image list {path} is empty; expected one image path a line")
        self.labels = np.array([-1 if label is None else label for label in labels], np.int64)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def encoded(self, i: int) -> Buffer:
        """Encoded bytes of image i."""
        try:
            return self.paths[i].read_bytes()
        except OSError as error:
            raise InputError(f"{self.where(i)}: {error.strerror}") from None

    def where(self, i: int) -> str:
        """Path of image i."""
        return str(self.paths[i])


def embed_to_npz(
    checkpoint: Path,
    source: Path,
    out: Path,
    *,
    world: World | None = None,
    batch_size: int = 256,
    flip: bool = True,
    normalise: bool = False,
    skip_unreadable: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Unreadable]:
    """Embed a .rec, a folder per person or a text list of paths, and write OUT.npz on rank 0, whole or not at all.

    The file holds ``embeddings`` (N, D) float32, ``labels`` (N,) int64 (-1 where the source has none), ``names`` (N,)
    str (path, or record), ``unreadable`` (numbers of images whose rows are NaN), ``model`` (SHA-256 of the backbone),
    ``flip`` and ``normalised``. Rows are sums over the two mirror images as the backbone gives them, because their
    length tells an image's quality; ``normalise`` scales them to length 1. They are never in memory as a whole.

    Returns:
        The images that could not be read (``skip_unreadable``), the same on every rank.

    Raises:
        InputError: a path is unusable, or images are unreadable and not to be skipped.
    """
    from facetrain.checkpoint import fingerprint, load_backbone
    from facetrain.data.dataset import open_images

    world = world or World()
    if out.suffix != ".npz" or not out.parent.is_dir():
        raise InputError(f"output {out} must be an .npz file in a folder that exists")
    listed = source.is_file() and source.suffix != ".rec"
    images = ListedImages(source) if listed else open_images(source)
    backbone, model = load_backbone(checkpoint)
    unreadable: list[Unreadable] = []
    blocks = embed_blocks(
        backbone.to(world.device),
        images,
        input_size=model.input_size,
        unreadable=unreadable,
        batch_size=batch_size,
        flip=flip,
        world=world,
        threads=threads,
        progress=progress,
    )
    if world.rank == 0:
        about = {"model": np.array(fingerprint(checkpoint)), "flip": np.array(flip), "normalised": np.array(normalise)}
        try:
            with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
                _store(map(_unit, blocks) if normalise else blocks, len(images), Path(folder))
                if skip_unreadable or not unreadable:
                    about["labels"], about["names"] = images.labels, np.array([*map(images.where, range(len(images)))])
                    about["unreadable"] = np.array([one.image for one in unreadable], np.int64)
                    _zip(Path(folder), about, out)
        except OSError as error:
            raise InputError(f"{out} cannot be written: {error.strerror}") from None
    else:
        for _ in blocks:  # this rank's share goes to rank 0
            pass
    world.barrier()
    if not skip_unreadable:
        _refuse(unreadable, len(images))
    return unreadable


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms == 0, 1, norms), np.float32)


def _store(blocks: Iterable[NDArray[np.float32]], total: int, folder: Path) -> None:
    """Blocks of rows as ``folder``/embeddings.npy, (total, D)."""
    store, start = None, 0
    for rows in blocks:
        if store is None:
            store = open_memmap(folder / "embeddings.npy", "w+", np.float32, (total, rows.shape[1]))
        store[start : start + len(rows)] = rows
        start += len(rows)
    assert store is not None
    store.flush()


def _zip(folder: Path, arrays: dict[str, NDArray], out: Path) -> None:
    """``folder``'s embeddings.npy and ``arrays`` as one .npz, without holding the embeddings in memory."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    with zipfile.ZipFile(folder / "all.npz", "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.glob("*.npy")):
            archive.write(file, file.name)
    os.replace(folder / "all.npz", out)
