"""Which rows of which tensor go to which file and come back from it: planners for ``torch.distributed.checkpoint``.

Its own planners know what DTensor spreads, in chunks of equal length. These know :class:`Piece`: any cut into
consecutive rows, ranks without rows included, so that any number of ranks reads what any other wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from facetrain.checkpoints.piece import Piece
from facetrain.errors import InputError

ALL = "all"
"""The one entry of the state dicts that DCP is given: of each it writes several log records, ten thousand a save."""

_DECIDES = {
    "backbone": "the model section",
    "optimizer": "the model section or optim",
    "classifier": "the number of people, the model section or optim.name",
    "leap": "leap, or the number of images of its classes,",
}


class PieceWriter(SavePlanner):
    """Plans that every rank writes its own rows, and rank 0 what all ranks hold alike."""

    def set_up_planner(
        self, state_dict: dict[str, dict[str, Piece]], storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        """Take the pieces of this rank, under their full names."""
        self._pieces, self._coordinator = state_dict[ALL], is_coordinator

    def create_local_plan(self) -> SavePlan:
        """An item for each piece that has rows here."""
        mine = {name: piece for name, piece in self._pieces.items() if self._coordinator or piece.total is not None}
        return SavePlan([_write_item(name, piece) for name, piece in mine.items() if len(piece.rows)])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Nothing has to be shared out; the pieces of all ranks must make up each whole."""
        wholes: dict[str, TensorStorageMetadata] = {}
        for item in (item for plan in all_plans for item in plan.items):
            held = item.tensor_data
            assert held is not None
            whole = wholes.setdefault(item.index.fqn, TensorStorageMetadata(held.properties, held.size, []))
            whole.chunks.append(held.chunk)
        for name, whole in wholes.items():
            assert _hole(whole, range(whole.size[0] if whole.size else 1)) is None, name
        return all_plans, Metadata(state_dict_metadata=dict(wholes))

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """As planned."""
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The tensor of an item."""
        return self._pieces[write_item.index.fqn].tensor


class PieceReader(LoadPlanner):
    """Plans that this rank reads its own rows from whichever files hold them, into the tensors of its pieces."""

    def __init__(self, path: Path, totals: Mapping[str, int]) -> None:
        """``path`` is the checkpoint, for messages; ``totals`` the rows of each whole that was spread over ranks."""
        self._path, self._totals = path, totals

    def set_up_planner(
        self, state_dict: dict[str, dict[str, Piece]], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Take the pieces to fill and what the files hold."""
        assert metadata is not None
        self._pieces = state_dict[ALL]
        self._stored = {n: s for n, s in metadata.state_dict_metadata.items() if isinstance(s, TensorStorageMetadata)}

    def create_local_plan(self) -> LoadPlan:
        """An item for each part of a piece that lies in one file.

        Raises:
            InputError: the checkpoint is of another model, optimiser, data set, or has holes.
        """
        wanted = {name.split(".")[0] for name in self._pieces}
        for name in sorted({*self._pieces, *self._stored}):
            if name.split(".")[0] in wanted:
                self._check(name)
        items = []
        for name, piece in self._pieces.items():
            if name in self._stored:
                items += _read_items(name, piece, self._stored[name])
        return LoadPlan(items)

    def _check(self, name: str) -> None:
        piece, stored = self._pieces.get(name), self._stored.get(name)
        there, here = self._whole(name), None if piece is None else (piece.tensor.dtype, piece.shape)
        if there != here:
            decides = _DECIDES.get(name.split(".")[0], "the recipe")
            raise InputError(
                f"checkpoint {self._path} does not fit this run: {name} is {_said(there)} there and {_said(here)} "
                f"here; {decides} was different when it was made"
            )
        assert piece is not None
        if len(piece.rows) == 0:
            return
        hole = piece.rows.start if stored is None else _hole(stored, piece.rows)
        if hole is not None:
            raise InputError(f"checkpoint {self._path} is damaged: row {hole} of {name} is in no file, or in two")

    def _whole(self, name: str) -> tuple[torch.dtype, tuple[int, ...]] | None:
        """Type and shape of a whole as the checkpoint has it; what has no rows at all is in no file."""
        stored, total = self._stored.get(name), self._totals.get(name)
        if stored is not None:
            shape = tuple(stored.size)
            return stored.properties.dtype, shape if total is None else (total, *shape[1:])
        piece = self._pieces.get(name)
        return (piece.tensor.dtype, (0, *piece.tensor.shape[1:])) if total == 0 and piece is not None else None

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Each rank reads for itself."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """As planned."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        """Never called: a checkpoint holds tensors and nothing else."""
        raise AssertionError(read_item.dest_index.fqn)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """The part of a piece's tensor that an item fills."""
        tensor = self._pieces[read_item.dest_index.fqn].tensor
        return tensor.narrow(0, read_item.dest_offsets[0], read_item.lengths[0]) if tensor.dim() else tensor

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """It was filled in place."""


def _write_item(name: str, piece: Piece) -> WriteItem:
    offsets = torch.Size([piece.first, *[0] * (piece.tensor.dim() - 1)]) if piece.tensor.dim() else torch.Size()
    chunk = ChunkStorageMetadata(offsets, piece.tensor.shape)
    held = TensorWriteData(chunk, TensorProperties(piece.tensor.dtype), torch.Size(piece.shape))
    return WriteItem(MetadataIndex(name, offsets), WriteItemType.SHARD, tensor_data=held)


def _read_items(name: str, piece: Piece, stored: TensorStorageMetadata) -> list[ReadItem]:
    items = []
    for chunk in stored.chunks:
        held = _rows(chunk)
        start, stop = max(held.start, piece.rows.start), min(held.stop, piece.rows.stop)
        if start >= stop:
            continue
        item = ReadItem(
            LoadItemType.TENSOR,
            MetadataIndex(name),
            _from_row(chunk.sizes, start - piece.first),
            MetadataIndex(name, chunk.offsets),
            _from_row(chunk.sizes, start - held.start),
            chunk.sizes,
        )
        items.append(replace(item, lengths=torch.Size([stop - start, *chunk.sizes[1:]])) if chunk.sizes else item)
    return items


def _rows(chunk: ChunkStorageMetadata) -> range:
    return range(chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]) if chunk.sizes else range(1)


def _from_row(sizes: torch.Size, row: int) -> torch.Size:
    """Offsets of a part that begins at ``row`` and is whole in the other dimensions."""
    return torch.Size([row, *[0] * (len(sizes) - 1)]) if sizes else sizes


def _hole(stored: TensorStorageMetadata, rows: range) -> int | None:
    """The first of ``rows`` that no chunk has, or that two have; None: each is there once."""
    reached = rows.start
    for held in sorted((_rows(chunk) for chunk in stored.chunks), key=lambda held: held.start):
        start, stop = max(held.start, rows.start), min(held.stop, rows.stop)
        if start < stop:
            if start != reached:
                return min(start, reached)
            reached = stop
    return None if reached == rows.stop else reached


def _said(whole: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    if whole is None:
        return "absent"
    dtype, shape = whole
    return f"{str(dtype).removeprefix('torch.')} {' x '.join(map(str, shape)) or 'scalar'}"
