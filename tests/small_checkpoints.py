"""Checkpoints so small that thousands of them are written and damaged in a test; each step has values of its own."""

from pathlib import Path

import torch

from facetrain.checkpoints.files import newest_good, read_manifest
from facetrain.checkpoints.piece import Piece
from facetrain.checkpoints.storage import read
from facetrain.checkpoints.writer import Writer
from facetrain.distributed import World

CLASSES = 5
ABOUT = {"config": {}, "num_classes": CLASSES, "num_images": 20, "versions": {"facetrain": "0"}}


def state(step: int, world: World, width: int = 3) -> dict[str, Piece]:
    """All that a rank has at a step, as pieces."""
    generator = torch.Generator().manual_seed(step)
    own = world.rows_of(CLASSES)
    pieces = {f"backbone.{i}": Piece(torch.randn((2, width), generator=generator)) for i in range(2)}
    pieces["optimizer.0/momentum_buffer"] = Piece(torch.randn((2, width), generator=generator))
    for name in ("classifier.weight", "leap.centre"):
        rows = torch.randn((CLASSES, width), generator=generator)[own.start : own.stop]
        pieces[name] = Piece(rows, own.start, CLASSES)
    before = sum(range(world.rank))
    pieces["leap.pending"] = Piece(torch.full((world.rank, 2), float(step)), before, sum(range(world.size)))
    return pieces


def found(folder: Path, ranks: int = 1) -> int:
    """Step of the newest checkpoint that verifies (0: there is none), all of which must be of that one step."""
    path, _ = newest_good(folder)
    if path is None:
        return 0
    step = int(read_manifest(path)["step"])
    pending = sum(range(ranks))  # rank r has r rows
    whole = state(step, World()) | {"leap.pending": Piece(torch.full((pending, 2), float(step)), 0, pending)}
    filled = {name: Piece(torch.zeros_like(p.tensor), p.first, p.total) for name, p in whole.items()}
    read(path, filled)
    for name, piece in whole.items():
        assert torch.equal(filled[name].tensor, piece.tensor), (path, name)
    return step


def write(folder: Path, *steps: int, world: World | None = None, keep: int = 2) -> None:
    """Checkpoints of some steps, one after the other."""
    world = world or World()
    writer = Writer(folder, world, keep, timeout=30)
    for step in steps:
        writer.save(step, state(step, world), ABOUT)
        assert writer.wait() is None
