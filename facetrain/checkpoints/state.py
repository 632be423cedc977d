"""The backbone and its optimiser as pieces of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from facetrain.checkpoints.piece import Piece
from facetrain.errors import InputError

_STATES = {"SGD": {"momentum_buffer"}, "AdamW": {"step", "exp_avg", "exp_avg_sq"}}


def backbone_pieces(backbone: nn.Module) -> dict[str, Piece]:
    """Weights and running statistics; to be filled in place, or written, which rank 0 does for all."""
    return {f"backbone.{name}": Piece(tensor) for name, tensor in backbone.state_dict().items()}


def optimizer_pieces(backbone: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Piece]:
    """What the optimiser keeps of each parameter, ``optimizer.NAME/STATE``; none before its first step."""
    return {
        f"optimizer.{name}/{key}": Piece(value)
        for name, parameter in backbone.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no floating-point number in them is infinite or NaN; waits for the device once, if all is well."""
    floats = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not floats:
        return True
    # A sum shows what is not finite whatever the order in memory, and costs less than half of anything else.
    sums = torch.stack([tensor.sum().double() for tensor in floats])
    return bool(sums.isfinite().all()) or all(bool(tensor.isfinite().all()) for tensor in floats)


def make_room(path: Path, names: Iterable[str], backbone: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give a fresh optimiser the state that a checkpoint's ``names`` say, not filled yet.

    Raises:
        InputError: the checkpoint at ``path`` is of another optimiser or model.
    """
    parameters = dict(backbone.named_parameters())
    expected = _STATES[type(optimizer).__name__]
    for full in names:
        if not full.startswith("optimizer."):
            continue
        name, _, state = full.removeprefix("optimizer.").rpartition("/")
        if name not in parameters or state not in expected:
            raise InputError(
                f"checkpoint {path} does not fit this run: it holds {full}, which the recipe's model and optim.name do "
                "not have"
            )
        scalar = state == "step"  # AdamW's, kept on the CPU
        optimizer.state[parameters[name]][state] = torch.zeros(()) if scalar else torch.empty_like(parameters[name])
