#!/usr/bin/env python
"""Loader images/s per core, beside the bare JPEG decoder and a per-item loader. See docs/benchmarks/README.md.

With mxnet's per-item loader too where mxnet is installed: `make test-mxnet` makes .venv-mxnet, then
.venv-mxnet/bin/python tools/bench_loader.py
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

import mxnet_loader
import simplejpeg
import torch
from benchmark import Spread, parser, ratio, report, rounded, table

from facetrain.config import AugmentConfig, DataConfig
from facetrain.data.dataset import Images, open_images
from facetrain.data.foreign_readers import import_mxnet
from facetrain.data.images import encode_jpeg
from facetrain.data.loader import Loader
from facetrain.data.record_writer import RecordWriter
from facetrain.data.synthetic import render
from facetrain.errors import InputError
from facetrain.models import normalise
from facetrain.processes import keep_freed_memory

BARE = "simplejpeg alone, bytes in memory"
UINT8, FLOAT, PEER = "facetrain to uint8", "facetrain to float32", "mxnet, item by item, to float32"
AHEAD = 4
"""Batches that each worker keeps ready: ``data.prefetch`` as it comes."""


class Taken(NamedTuple):
    """Seconds of one measurement."""

    cpu: float
    """Processor time an image, of the trainer and its workers, once everything runs."""
    wall: float
    """The same by the clock."""
    start_cpu: float
    """Until the first batch is there."""
    start: float
    """The same by the clock."""


def main() -> None:
    """Measure and report."""
    options = _options()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as training on a CPU does
    with tempfile.TemporaryDirectory() as folder:
        path = options.data or write_images(Path(folder), options)
        images = open_images(path)
        encoded = [bytes(images.encoded(i)) for i in range(min(len(images), options.images))]
        sides: dict[tuple[str, int], Callable[[], Taken]] = {(BARE, 0): lambda: decode_alone(encoded, options.epochs)}
        for workers in options.workers:
            for name, finish in ((UINT8, _as_it_is), (FLOAT, normalise)):
                opened = functools.partial(_ours, images, path, workers, options, finish)
                sides[name, workers] = functools.partial(_measure, opened, workers, options.images * options.epochs)
        missing = _add_peer(sides, path, options)
        taken: dict[tuple[str, int], list[Taken]] = {side: [] for side in sides}
        for number in range(1 + options.rounds):  # the first round warms up
            for side, measure in sides.items():
                taken[side] += [measure()] * (number > 0)
    average = sum(map(len, encoded)) / len(encoded)
    source = f"of {path.name}" if options.data else f"rendered at {options.size} x {options.size}, q{options.quality}"
    text = (
        f"{len(encoded):,} JPEGs {source}, {average:,.0f} bytes on average; {options.epochs * options.images:,} a "
        f"measurement, {options.rounds} rounds; batches of {options.batch_size} x {options.size} x {options.size}, "
        f"{'no augmentation' if options.plain else 'random flip'}. Images/s per core: images by CPU seconds of the "
        "trainer and its workers, once all of them run.\n\n"
    )
    report("Loader", text + _tables(taken) + missing, options.out)


def _options() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=5, devices=False)
    options.add_argument("--images", type=int, default=6000)
    options.add_argument("--data", type=Path, help="a .rec of your own instead of rendered faces")
    options.add_argument("--distinct", type=int, default=1000, help="rendered images; the others repeat them")
    options.add_argument("--epochs", type=int, default=3, help="times through --images in each measurement")
    options.add_argument("--size", type=int, default=112)
    options.add_argument("--quality", type=int, default=95, help="of the JPEGs (default 95)")
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--plain", action="store_true", help="no flip in facetrain's loader")
    return options.parse_args()


def write_images(folder: Path, options: argparse.Namespace) -> Path:
    """A .rec of rendered faces."""
    distinct = min(options.distinct, options.images)
    faces = [encode_jpeg(render(0, number, 0, options.size), options.quality) for number in range(distinct)]
    path = folder / "train.rec"
    with RecordWriter(path, options.size) as writer:
        for number in range(options.images):
            writer.write(number // 10, faces[number % distinct])
    return path


def decode_alone(encoded: list[bytes], epochs: int) -> Taken:
    """What nobody can save: the decoder, called as it comes."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(epochs):
        for image in encoded:
            simplejpeg.decode_jpeg(image, colorspace="RGB")
    count = epochs * len(encoded)
    return Taken((time.process_time() - cpu) / count, (time.perf_counter() - wall) / count, 0, 0)


def _as_it_is(images: torch.Tensor) -> torch.Tensor:
    return images


def _ours(
    images: Images, path: Path, workers: int, options: argparse.Namespace, finish: Callable[[torch.Tensor], object]
) -> Generator[int]:
    """Batches without end, as training gets them; yields how many images each has."""
    augment = AugmentConfig(flip=0.0) if options.plain else AugmentConfig()
    config = DataConfig(path=path, workers=workers, prefetch=AHEAD, augment=augment)
    for (batch,) in Loader(images, config, options.size, options.batch_size).iterate(0, 10**9):
        finish(batch.images)
        yield len(batch.images)


def _peer(path: Path, workers: int, batch_size: int) -> Generator[int]:
    for images in mxnet_loader.batches(path, batch_size, workers):
        yield len(images)


def _add_peer(sides: dict[tuple[str, int], Callable[[], Taken]], path: Path, options: argparse.Namespace) -> str:
    """Add the per-item loader, with fewer images as it takes so long; why not, where mxnet is missing."""
    try:
        import_mxnet()
    except InputError as error:
        return f"\n\nWithout the per-item loader: {error}"
    for workers in options.workers:
        opened = functools.partial(_peer, path, workers, options.batch_size)
        sides[PEER, workers] = functools.partial(_measure, opened, workers, options.images * options.epochs // 12)
    return ""


def _measure(opened: Callable[[], Generator[int]], workers: int, images: int) -> Taken:
    """Start, let the workers fill their queues and empty them, take at least so many images, stop."""
    cpu, wall = _processor_seconds(), time.perf_counter()
    batches = opened()
    next(batches)
    started = _processor_seconds() - cpu, time.perf_counter() - wall
    for _ in itertools.islice(batches, 1 + 2 * AHEAD * workers):
        pass
    cpu, wall, count = _processor_seconds(), time.perf_counter(), 0
    while count < images:
        count += next(batches)
    taken = Taken((_processor_seconds() - cpu) / count, (time.perf_counter() - wall) / count, *started)
    batches.close()
    return taken


def _processor_seconds() -> float:
    """Of this process and of its children, which are still alive."""
    children = multiprocessing.active_children()
    return time.process_time() + sum(time.clock_gettime(_clock(child.pid or 0)) for child in children)


def _clock(process: int) -> int:
    clock = ctypes.c_int()
    if ctypes.CDLL(None).clock_getcpuclockid(process, ctypes.byref(clock)):
        raise ProcessLookupError(f"process {process} has ended")
    return clock.value


def _tables(taken: dict[tuple[str, int], list[Taken]]) -> str:
    """Speeds once everything runs, and the start."""
    spreads = {side: [Spread(column) for column in zip(*measured, strict=True)] for side, measured in taken.items()}
    rows, starts = [], []
    bare = spreads[BARE, 0][0]
    for (name, workers), (cpu, wall, start_cpu, start) in spreads.items():
        label = name if name == BARE else f"{name}, {workers} workers"
        beside = ratio(spreads[PEER, workers][0], cpu) if name != BARE and (PEER, workers) in spreads else "-"
        rows.append([label, *cpu.inverse(1).cells(), ratio(bare, cpu), beside, *wall.inverse(1).cells()])
        if name != BARE:
            starts.append([label, rounded(start.median, 3), rounded(start_cpu.median, 3)])
    header = ["", "images/s per core", "range", "of the decoder's", "times mxnet's", "images/s (wall)", "range"]
    return table(header, rows) + "\n\n" + table(["until the first batch", "s (wall)", "CPU s"], starts)


if __name__ == "__main__":
    main()
