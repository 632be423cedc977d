"""Checkpoints through ``torch.distributed.checkpoint``, as safetensors files that its own reader understands.

Nothing is pickled: its file of metadata, which is, does not exist. Its safetensors writer builds each file in memory,
twice, and holds Python's lock meanwhile, so that training stands still (a quarter of the write's time where it was
measured); the one here writes the same format from the tensors themselves.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from facetrain.checkpoints.backbones import write_file
from facetrain.checkpoints.files import read_manifest, sha256
from facetrain.checkpoints.piece import Piece
from facetrain.checkpoints.plan import ALL, PieceReader, PieceWriter
from facetrain.checkpoints.state import all_finite
from facetrain.distributed import World
from facetrain.errors import InputError

Entries = dict[str, dict[str, Any]]
"""File name -> its size in bytes and its SHA-256, as the manifest has them."""


def write(folder: Path, pieces: dict[str, Piece], world: World, group: Any, finish: Callable[[Entries], None]) -> None:
    """Write the pieces of all ranks, one file for each group of names and rank, all ranks together.

    Args:
        folder: made anew by rank 0.
        pieces: full name, ``group.name``, -> CPU tensors; names, types and totals equal on all ranks.
        world: the ranks.
        group: the process group to agree over; None with one rank.
        finish: called on rank 0 when all files of all ranks are on the disk.

    Raises:
        FloatingPointError: on every rank, where any rank has a number that is not finite.
        OSError: on every rank, that of the first rank that failed, ``finish`` included.
        RuntimeError: another rank is gone.
    """
    storage = _Storage(folder, pieces, world, finish)
    _forget_warning()
    try:
        save({ALL: pieces}, storage_writer=storage, planner=PieceWriter(), process_group=group, no_dist=world.size == 1)
    except CheckpointException as failure:
        raise _cause(failure) from None


def read(path: Path, pieces: dict[str, Piece]) -> None:
    """Fill pieces, in place, from a checkpoint that any number of ranks wrote; each rank for itself.

    Args:
        path: a checkpoint that verifies.
        pieces: full name -> what is to be filled: all names of a group, or none.

    Raises:
        InputError: the checkpoint does not fit, or is damaged.
    """
    manifest = read_manifest(path)
    stored(path)
    _forget_warning()
    reader, planner = HuggingFaceStorageReader(str(path)), PieceReader(path, manifest["rows"])
    try:
        load({ALL: pieces}, storage_reader=reader, planner=planner, no_dist=True)
    except CheckpointException as failure:
        cause = _cause(failure)
        if isinstance(cause, OSError | SafetensorError):
            raise InputError(f"checkpoint {path} cannot be read: {cause}") from None
        raise cause from None


def stored(path: Path) -> dict[str, Any]:
    """Full name -> type, shape and parts of what a checkpoint's files hold, as DCP's TensorStorageMetadata.

    Raises:
        InputError: a file is missing, too many, or no safetensors.
    """
    names = set(read_manifest(path)["files"])
    found = {file.name for file in path.glob("*.safetensors")}
    if found != names:
        raise InputError(f"checkpoint {path} is damaged: {min(found ^ names)} is missing or does not belong there")
    try:
        return dict(HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"checkpoint {path} cannot be read as safetensors: {error}") from None


class _Storage(HuggingFaceStorageWriter):
    """DCP's safetensors storage with files named by group and rank, written without a copy, hashed."""

    def __init__(self, folder: Path, pieces: dict[str, Piece], world: World, finish: Callable[[Entries], None]) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._spread = {name.split(".")[0] for name, piece in pieces.items() if piece.total is not None}
        self._of, self._done = f"{world.rank:05d}-of-{world.size:05d}", finish

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Rank 0 makes the folder; no rank writes before all have been here."""
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        if is_coordinator:
            shutil.rmtree(self.path, ignore_errors=True)
            Path(self.path).mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is: the folder is made already."""
        return plan

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write and sync this rank's files; the result of each is its name and entry, under its first tensor."""
        if not all_finite(cast(Tensor, planner.resolve_data(item)) for item in plan.items):
            raise FloatingPointError("not finite")
        groups: dict[str, list[WriteItem]] = {}
        for item in plan.items:
            groups.setdefault(item.index.fqn.split(".")[0], []).append(item)
        results = []
        for group, items in groups.items():
            name = f"{group}-{self._of}.safetensors" if group in self._spread else f"{group}.safetensors"
            entry = _write_file(Path(self.path) / name, items, planner)
            results.append(WriteResult(items[0].index, entry["bytes"], (name, entry)))
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """All ranks are done."""
        self._done(dict(result.storage_data for rank in results for result in rank))


def _write_file(file: Path, items: list[WriteItem], planner: SavePlanner) -> dict[str, Any]:
    tensors = {item.index.fqn: cast(Tensor, planner.resolve_data(item)) for item in items}
    # What DCP's reader looks for: where in the whole the rows of each tensor begin.
    offsets = {item.index.fqn: {"saved_offsets": item.tensor_data.chunk.offsets} for item in items if item.tensor_data}
    described = {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}
    write_file(file, tensors, described)
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def _cause(failure: CheckpointException) -> Exception:
    """What the first rank that failed met with."""
    error, _ = failure.failures[min(failure.failures)]
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def _forget_warning() -> None:
    """DCP would warn each time that there is one process only."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
