#!/usr/bin/env python
"""Loader images/s per core, beside the bare JPEG decoder on the same images. See docs/benchmarks/README.md."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import simplejpeg
import torch
from benchmark import in_turns, parser, ratio, report, table

from facetrain.config import AugmentConfig, DataConfig
from facetrain.data.dataset import Images, open_images
from facetrain.data.images import encode_jpeg
from facetrain.data.loader import Loader
from facetrain.data.record_writer import RecordWriter
from facetrain.data.synthetic import render

BARE = "simplejpeg alone, bytes in memory"


def main() -> None:
    """Measure and report."""
    options = _options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = options.data or write_images(Path(folder), options)
        images = open_images(path)
        used = min(len(images), options.images) // options.batch_size * options.batch_size
        encoded = [bytes(images.encoded(i)) for i in range(used)]
        sides: dict[str, Callable[[], object]] = {BARE: lambda: decode_alone(encoded, options.epochs)}
        for workers in options.workers:
            sides[f"loader, {workers} workers"] = _loader(images, path, workers, used, options)
        timings = in_turns(sides, options.rounds)
    floor, count = timings[BARE].cpu, used * options.epochs
    rows = [
        [name, *t.cpu.inverse(count).cells(), ratio(t.cpu, floor), *t.wall.inverse(count).cells()]
        for name, t in timings.items()
    ]
    header = ["", "images/s per core", "range", "CPU time / decoder's", "images/s (wall)", "range"]
    average = sum(map(len, encoded)) / used
    source = f"of {path.name}" if options.data else f"rendered at {options.size} x {options.size}, q{options.quality}"
    text = (
        f"{used:,} JPEGs {source}, {average:,.0f} bytes on average, {options.epochs} times a round, "
        f"{options.rounds} rounds; batches of {options.batch_size} x {options.size} x {options.size}, "
        f"{'no augmentation' if options.plain else 'random flip'}. Images/s per core: images by CPU seconds of the "
        "trainer and its workers, their start included.\n\n"
    )
    report("Loader", text + table(header, rows), options.out)


def _options() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=5, devices=False)
    options.add_argument("--images", type=int, default=6000)
    options.add_argument("--data", type=Path, help="a .rec of your own instead of rendered faces; its first --images")
    options.add_argument("--distinct", type=int, default=1000, help="rendered images; the others repeat them")
    options.add_argument("--epochs", type=int, default=3, help="times through the images in each measurement")
    options.add_argument("--size", type=int, default=112)
    options.add_argument("--quality", type=int, default=95, help="of the JPEGs (default 95)")
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--plain", action="store_true", help="no flip")
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


def decode_alone(encoded: list[bytes], epochs: int) -> None:
    """What nobody can save: the decoder, called as it comes."""
    for _ in range(epochs):
        for image in encoded:
            simplejpeg.decode_jpeg(image, colorspace="RGB")


def _loader(images: Images, path: Path, workers: int, used: int, options: argparse.Namespace) -> Callable[[], object]:
    """As many updates as ``decode_alone`` decodes images; the workers start and end within."""
    augment = AugmentConfig(flip=0.0) if options.plain else AugmentConfig()
    config = DataConfig(path=path, workers=workers, augment=augment)
    loader = Loader(images, config, options.size, options.batch_size)

    def updates() -> None:
        seen = 0
        for batches in loader.iterate(0, options.epochs * used // options.batch_size):
            seen += sum(len(batch.images) for batch in batches)
        assert seen == options.epochs * used

    return updates


if __name__ == "__main__":
    main()
