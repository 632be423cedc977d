"""Embeddings of images by all ranks: decoded by threads, embedded in batches, gathered block by block."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from facetrain.data.encoded import Encoded
from facetrain.data.progress import progress as progress_line
from facetrain.data.workers import cores
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.models import normalise

BLOCK = 32768
"""Rows gathered at once: what bounds the memory on the device, whatever the size of the set."""

MEND = "mend them, or leave them out with --skip-unreadable"
"""How messages end about images that a command can do without."""

Progress = Callable[[int], None]
"""Called after each batch, on every rank, with how many images more are done by all ranks, as far as this one knows."""


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read or decoded: its number and why, with the place it lies at."""

    image: int
    reason: str


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """``module`` in evaluation mode without gradients; each submodule's mode is put back afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield module
    finally:
        for part in training:
            part.training = True


def shown_progress(what: str, total: int, world: World) -> AbstractContextManager[Progress]:
    """A progress line on rank 0, nothing on the others."""
    return progress_line(what, total) if world.rank == 0 else nullcontext(lambda more: None)


def embed(
    backbone: nn.Module,
    images: Encoded,
    *,
    input_size: int,
    batch_size: int = 256,
    flip: bool = True,
    world: World | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Embeddings of all images, on every rank; each rank embeds its share.

    Args:
        backbone: (n, 3, size, size) float32 in -1..1 -> (n, D), on ``world.device``; run in evaluation mode, then put
            back.
        images: N encoded images, at least one.
        input_size: pixels a side; images of another size become it as ``images`` says.
        batch_size: images at once on each rank.
        flip: add the embedding of the mirrored image. The sum is not normalised, as in insightface's verification.
        world: the ranks that share the work; None: this process alone.
        progress: told of each batch.

    Returns:
        (N, D) float32.

    Raises:
        InputError: no images, or unreadable ones; raised on every rank, when all images were tried.
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
        progress=progress,
    )
    rows = np.concatenate(list(blocks))
    refuse(unreadable, len(images))
    return rows


def refuse(unreadable: Sequence[Unreadable], total: int, can_skip: bool = False) -> None:
    """InputError where any of ``total`` images is unreadable; ``can_skip``: the command has ``--skip-unreadable``."""
    if unreadable:
        rest = f"; {MEND}" if can_skip and len(unreadable) < total else ""
        raise InputError(f"{len(unreadable)} of {total} images cannot be read, the first: {unreadable[0].reason}{rest}")


def embed_blocks(
    backbone: nn.Module,
    images: Encoded,
    *,
    input_size: int,
    unreadable: list[Unreadable],
    batch_size: int = 256,
    flip: bool = True,
    world: World | None = None,
    progress: Progress | None = None,
    block: int = BLOCK,
    start: int = 0,
) -> Generator[NDArray[np.float32], None, None]:
    """Embeddings in blocks of rows in order, so that no rank ever holds all N of them; each rank embeds its share.

    See :func:`embed` for the other arguments. Every rank must take as many blocks, and close the generator where that
    is not all of them: it holds threads, and left to the garbage collector it would join them at any moment, also at
    one that deadlocks.

    Args:
        unreadable: takes the images that cannot be read, in order and the same on every rank; their rows are NaN.
        block: about how many rows a block has; rounded to full batches of every rank.
        start: the first image to embed; those before it are left out.

    Yields:
        (n, D) float32, the same on every rank.
    """
    world = world or World()
    total = len(images)
    if total == 0:
        raise InputError("there are no images to embed")
    length = max(1, block // (batch_size * world.size)) * batch_size * world.size
    blocks = [range(first, min(first + length, total)) for first in range(start, total, length)]
    shares = [whole[own.start : own.stop] for whole in blocks for own in [world.rows_of(len(whole))]]
    with _Decoders(images, input_size, batch_size, world) as decoders:
        batches = decoders.batches(shares)
        for whole, share in zip(blocks, shares, strict=True):
            count = len(whole)
            parts, failures, done = [], [], 0
            with evaluating(backbone):
                for pixels, failed in itertools.islice(batches, -(-len(share) // batch_size)):
                    rows = _forward(backbone, pixels.to(world.device, non_blocking=True), flip)
                    rows[[position for position, _ in failed]] = torch.nan
                    parts.append(rows)
                    failures += [one for _, one in failed]
                    if progress:
                        before, done = done, min(count, done + len(rows) * world.size)
                        progress(done - before)
                if not parts:  # a rank without rows still has to know D
                    black = torch.zeros((1, input_size, input_size, 3), dtype=torch.uint8, device=world.device)
                    parts.append(_forward(backbone, black, flip=False)[:0])
            gathered = world.gather_rows(torch.cat(parts), count)
            for theirs in world.gather_objects(failures):
                unreadable += theirs
            yield gathered.cpu().numpy()


def _forward(backbone: nn.Module, pixels: Tensor, flip: bool) -> Tensor:
    """(n, size, size, 3) uint8 -> (n, D) float32, the mirror image's embedding added where asked."""
    images = normalise(pixels)
    embeddings: Tensor = backbone(images).float()
    return embeddings + backbone(images.flip(3)).float() if flip else embeddings


_Failed = list[tuple[int, Unreadable]]  # (row in its batch, what is wrong)


class _Decoders:
    """Threads that decode: the JPEG library leaves the interpreter lock to the others while it works."""

    def __init__(self, images: Encoded, size: int, batch_size: int, world: World) -> None:
        self.images, self.size, self.batch_size = images, size, batch_size
        self.pinned = world.device.type == "cuda"
        self.threads = min(8, cores())

    def __enter__(self) -> _Decoders:
        self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def batches(self, shares: Sequence[range]) -> Iterator[tuple[Tensor, _Failed]]:
        """((n, size, size, 3) uint8, failures) of each share in order, no batch of two shares.

        The next batch is decoded while the caller uses this one, also from one share to the next.
        """
        cut = (rows[i : i + self.batch_size] for rows in shares for i in range(0, len(rows), self.batch_size))
        ahead: tuple[Tensor, list[Future[_Failed]]] | None = None
        for batch in itertools.chain(cut, [None]):
            current, ahead = ahead, None if batch is None else self._begin(batch)
            if current:
                yield current[0], [failed for part in current[1] for failed in part.result()]

    def _begin(self, batch: range) -> tuple[Tensor, list[Future[_Failed]]]:
        pixels = torch.empty((len(batch), self.size, self.size, 3), dtype=torch.uint8, pin_memory=self.pinned)
        bounds = np.linspace(0, len(batch), self.threads + 1).astype(int).tolist()
        parts = [range(a, b) for a, b in itertools.pairwise(bounds)]
        return pixels, [self.pool.submit(self._decode, batch, part, pixels.numpy()) for part in parts]

    def _decode(self, batch: range, part: range, out: NDArray[np.uint8]) -> _Failed:
        failed = []
        for position in part:
            try:
                self.images.decode(batch[position], out[position])
            except InputError as error:
                out[position] = 0
                failed.append((position, Unreadable(batch[position], str(error))))
        return failed
