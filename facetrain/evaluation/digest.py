"""A digest of what a network would see of a set of images, and in which order: cached embeddings are kept by it."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from facetrain.data.encoded import Encoded
from facetrain.data.workers import cores
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation.extract import shown_progress

_CHUNK = 256  # images hashed at a time; a digest does not depend on how many ranks share them
_SAMPLE = 16
_UNREADABLE = b"\xff" * 8  # where other images have their length in bytes


def images_digest(images: Encoded, input_size: int, world: World, what: str = "embedding") -> str:
    """Hexadecimal SHA-256 of the images' content and order, and of how they become pixels; the same on every rank.

    Ranks share the reading. The encoded bytes are hashed and, so that another decoder, cut or size is noticed, the
    pixels of a few images. A class with a ``decode`` of its own may use more than the bytes (landmarks, say): it says
    what else each image depends on in ``content(i) -> bytes``, which is then hashed beside the encoded bytes; where it
    does not, all pixels are hashed, which takes as long as decoding them.

    Args:
        images: N images, at least one; unreadable ones count as such, so that a digest changes when they are mended.
        input_size: pixels a side.
        world: the ranks.
        what: the job, for the progress line.
    """
    total = len(images)
    chunks = range(0, total, _CHUNK)
    own = world.rows_of(len(chunks))
    with (
        shown_progress(f"{what}: looking for known images", total, world) as progress,
        ThreadPoolExecutor(min(8, cores()), thread_name_prefix="digest") as pool,
    ):
        parts = []
        for part in pool.map(lambda first: _chunk(images, input_size, first), chunks[own.start : own.stop]):
            parts.append(part)
            progress(max(0, min(_CHUNK * world.size, total - (len(parts) - 1) * _CHUNK * world.size)))
    method = type(images).to_pixels
    digest = hashlib.sha256(f"{total} {method.__module__}.{method.__qualname__}".encode())
    for part in (one for theirs in world.gather_objects(parts) for one in theirs):
        digest.update(part)
    for i in np.linspace(0, total - 1, min(_SAMPLE, total)).astype(int).tolist():
        digest.update(_pixels(images, i, input_size))
    return str(world.broadcast_object(digest.hexdigest()))


def _chunk(images: Encoded, input_size: int, first: int) -> bytes:
    digest = hashlib.sha256()
    more = getattr(images, "content", None)
    whole = more is None and type(images).decode is not Encoded.decode
    for i in range(first, min(first + _CHUNK, len(images))):
        try:
            parts = [_pixels(images, i, input_size)] if whole else [images.encoded(i)]
        except InputError:
            digest.update(_UNREADABLE)
            continue
        for part in [*parts, more(i)] if more else parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.digest()


def _pixels(images: Encoded, i: int, size: int) -> bytes:
    pixels = np.empty((size, size, 3), np.uint8)
    try:
        images.decode(i, pixels)
    except InputError:
        return _UNREADABLE
    return pixels.tobytes()
