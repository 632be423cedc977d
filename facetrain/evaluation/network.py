"""A trained network from whatever file holds one: facetrain's own, exported or not, or anybody's ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from facetrain.checkpoints.backbones import find, fingerprint, load_backbone
from facetrain.checkpoints.files import sha256
from facetrain.errors import InputError

FIELD_SIZE = 112
"""Pixels a side of the field's aligned crops: what a source that does not say is taken to want."""
_EXPECTED = "expected a run's folder, a checkpoint in it, or a .safetensors, .onnx, .npz or .npy file"


@dataclass(frozen=True)
class Network:
    """A ``backbone`` in evaluation mode: (n, 3, input_size, input_size) in -1..1 -> (n, D), and two names for it.

    ``fingerprint`` is what results call it; ``weights`` is the hash of what it was really read from.
    """

    backbone: nn.Module
    input_size: int
    fingerprint: str
    weights: str


def open_network(model: Path, device: torch.device) -> Network:
    """A run (its newest good checkpoint), a checkpoint, an exported ``.safetensors`` file or an ``.onnx`` file.

    Raises:
        InputError: no such model, damaged, or its packages are not installed.
    """
    check_model(model)
    if model.suffix == ".onnx" and model.is_file():
        from facetrain.evaluation.onnx_model import OnnxModel

        onnx = OnnxModel(model, device, FIELD_SIZE)
        return Network(onnx, onnx.input_size, onnx.sha256, onnx.sha256)
    source = find(model)
    backbone, built = load_backbone(source)
    name = fingerprint(source)
    # An exported file says itself what it was made from; cached rows must be those of the weights that it has.
    weights = name if source.is_dir() else sha256(source)
    return Network(backbone.to(device), built.input_size, name, weights)


def check_model(model: Path) -> None:
    """InputError where ``model`` is missing or no kind of model, features made elsewhere among them."""
    if not model.exists():
        raise InputError(f"model {model} does not exist; {_EXPECTED}")
    if model.is_file() and model.suffix not in (".safetensors", ".onnx", ".npy", ".npz"):
        raise InputError(f"{model} is not a model that can be read; {_EXPECTED}")
