"""A checkpoint's backbone as one file for others: safetensors, or insightface arcface_torch's ``model.pt``."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch

import facetrain
from facetrain.atomic import result_file
from facetrain.checkpoints.backbones import find, fingerprint, load_backbone, write_backbone
from facetrain.checkpoints.files import MANIFEST
from facetrain.errors import InputError

_THEIRS = (64, 7)  # channels of the first stage and pixels a side of the last one in insightface's constructors


def convert(path: Path, out: Path) -> str:
    """Write the backbone of ``path``, without the classifier, to ``out``, by its suffix; whole or not at all.

    ``.pt`` is a state dict with the names and shapes of insightface's ``iresnet.py``, which
    ``torch.load(weights_only=True)`` reads.

    Args:
        path: a run's folder (its newest good checkpoint is taken), a checkpoint, or a ``.safetensors`` file.
        out: ends in ``.safetensors`` or ``.pt``; an older file is replaced, its folder is made.

    Returns:
        What to know about the file; empty where there is nothing.

    Raises:
        InputError: no such checkpoint, another suffix, a model that the layout cannot express, or ``out`` cannot be
            written or lies within a checkpoint.
    """
    if out.suffix not in (".safetensors", ".pt"):
        raise InputError(f"{out} must end in .safetensors, or in .pt for insightface's model.pt")
    source = find(path)
    if out.resolve() == source.resolve() or (out.parent / MANIFEST).is_file():
        raise InputError(f"{out} would change the checkpoint {source}; choose another place")
    backbone, model = load_backbone(source)
    if out.suffix == ".safetensors":
        with result_file(out) as growing:
            write_backbone(growing, backbone, model, fingerprint=fingerprint(source), facetrain=facetrain.__version__)
        return ""
    if model.activation != "prelu":
        raise InputError(
            f"{source} has model.activation {model.activation}; insightface's layout knows prelu only: convert to "
            ".safetensors, or facetrain export to .onnx"
        )
    state = OrderedDict((name, tensor.contiguous()) for name, tensor in backbone.state_dict().items())
    with result_file(out) as growing:
        torch.save(state, growing)
    width, side = model.width, -(-model.input_size // 16)
    if (width, side) == _THEIRS:
        return ""
    theirs = "insightface's own constructors begin 64 wide and end in 7 x 7 pixels"
    return f"{theirs}, this model begins {width} wide and ends in {side} x {side}"
