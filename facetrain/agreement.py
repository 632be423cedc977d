"""What the ranks of a run must agree on before its first update, and the folder that only one run may write to."""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import facetrain
from facetrain.config import Config
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.preflight import Inputs, changes
from facetrain.provenance import host


def agree_on(config: Config, inputs: Inputs, world: World) -> None:
    """Every rank must have the same recipe, data and version: unequal ones would train something, silently.

    Raises:
        InputError: on every rank, the first difference.
    """
    images = inputs.images
    mine = {
        "facetrain's version": facetrain.__version__,
        "number of people": images.num_classes,
        "number of images": len(images),
        "order of the labels (checksum)": zlib.crc32(images.labels.data),
        **config.model_dump(mode="json"),
    }
    everyone = world.gather_objects((host(), mine))
    for rank, (there, theirs) in enumerate(everyone):
        for key, first, other in changes(everyone[0][1], theirs):
            raise InputError(
                f"{key} is {first} for rank 0 on {everyone[0][0]}, but {other} for rank {rank} on {there}; "
                "start the same command with the same recipe and data everywhere"
            )


@contextmanager
def claimed(output: Path, world: World) -> Iterator[None]:
    """The run's folder for this run alone, until it ends in whatever way; every rank must see it.

    Raises:
        InputError: on every rank, where another run has it, or where a rank sees another file system.
    """
    handle, problem = None, None
    if world.rank == 0:
        output.mkdir(parents=True, exist_ok=True)
        handle = os.open(output, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = f"output: another run is writing to {output}; wait for its end or choose another folder"
        except OSError:  # some network file systems have no locks
            pass
    try:
        problem = world.broadcast_object(problem)
        if problem is None and world.largest(int(not output.is_dir())):
            problem = f"output: {output} is not on a file system that all machines share; choose one that is"
        if problem:
            raise InputError(problem)
        yield
    finally:
        if handle is not None:
            os.close(handle)
