"""Trained backbones, as evaluation and export find them: in a run's checkpoints, or in a file of their own.

```
checkpoints/step_00000400/
  backbone.safetensors                    weights and running statistics, "backbone.NAME"
  optimizer.safetensors                   "optimizer.NAME/STATE" of the backbone's optimiser
  classifier-00000-of-00002.safetensors   weight, momentum, ... of the classes of each rank that has any
  leap-00000-of-00002.safetensors         centres, angles and rows not yet counted, of the same classes
  manifest.json                           written last: step, recipe, versions, size and SHA-256 of each file
```

There is no pickle anywhere. Each file says at which row of the whole its tensors begin, so that any number of ranks
reads just the rows it owns. The position in the data, that in the learning rate's schedule and all random numbers are
functions of the step and need no state.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from facetrain.checkpoints.files import BACKBONE, MANIFEST, newest_good, read_manifest, verify
from facetrain.config import ModelConfig
from facetrain.errors import InputError
from facetrain.models import build_backbone

_EXPECTED = "expected a run's folder, one of its checkpoints or an exported .safetensors file"
PREFIX = "backbone."
"""Of a backbone's tensors in a checkpoint."""


def find(path: Path) -> Path:
    """The checkpoint meant by ``path``: itself, or the newest of a run's folder whose backbone is undamaged.

    Raises:
        InputError: there is none.
    """
    if not path.exists():
        raise InputError(f"checkpoint {path} does not exist; {_EXPECTED}")
    if path.is_file():
        if path.suffix != ".safetensors":
            raise InputError(f"{path} is not a .safetensors file; {_EXPECTED}")
        if path.name != BACKBONE or not (path.parent / MANIFEST).is_file():
            return path
        path = path.parent  # a checkpoint's own file
    if (path / MANIFEST).is_file():
        verify(path, [BACKBONE])
        return path
    for folder in (path / "checkpoints", path):
        good, problems = newest_good(folder, [BACKBONE])
        if good:
            return good
        if problems:
            raise InputError(f"no checkpoint under {folder} can be read: {problems[0]}")
    raise InputError(f"{path} holds no checkpoint; {_EXPECTED}")


def load_backbone(path: Path) -> tuple[nn.Module, ModelConfig]:
    """A trained backbone in evaluation mode, on the CPU, and how it was built.

    Args:
        path: a run's folder (its newest good checkpoint is taken), a checkpoint, or an exported ``.safetensors`` file.

    Raises:
        InputError: nothing of the kind there, or damaged.
    """
    found = find(path)
    state, described = _tensors(found)
    if described is None:
        raise InputError(f"{found} does not say which model it holds; expected a file that facetrain wrote")
    try:
        model = ModelConfig.model_validate(described)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{found} holds a model that this facetrain cannot build ({key})") from None
    backbone = build_backbone(model)
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:160]
        raise InputError(f"{found} holds other weights than its model has: {problem}") from None
    return backbone.eval(), model


def fingerprint(path: Path) -> str:
    """SHA-256 of the backbone's tensors, which names the model in results, exported or not."""
    found = find(path)
    if found.is_dir():
        return str(read_manifest(found)["fingerprint"])
    with opened(found) as tensors:
        said = (tensors.metadata() or {}).get("fingerprint")
    return said or content_hash(_tensors(found)[0])


def content_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of CPU tensors' names, types, shapes and values, in the order of their names, whatever file has them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_backbone(file: Path, backbone: nn.Module, model: ModelConfig, **about: str) -> None:
    """Write a backbone alone, with its description in the file's metadata."""
    write_file(file, backbone.state_dict(), {"model": model.model_dump_json(), **about})


def write_file(file: Path, tensors: Mapping[str, Tensor], described: Mapping[str, str]) -> None:
    """Write tensors of any device as one safetensors file, with ``described`` as its metadata; it is on the disk then.

    Raises:
        OSError: the disk refuses.
    """
    file.touch()
    usual = file.stat().st_mode  # safetensors would let nobody else read the file
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file, dict(described))
    except SafetensorError as error:
        said = re.search(r"os error (\d+)", str(error))
        number = int(said[1]) if said else errno.EIO
        raise OSError(number, os.strerror(number), str(file)) from None
    file.chmod(usual)
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def opened(file: Path) -> Any:
    """A safetensors file as a context; InputError where it is none."""
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors: {error}") from None


def _tensors(found: Path) -> tuple[dict[str, Tensor], Any]:
    """The backbone's state in a checkpoint or a file, and what it says of its model (None: nothing)."""
    file = found / BACKBONE if found.is_dir() else found
    with opened(file) as tensors:
        state = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118 - not a dict
        written = (tensors.metadata() or {}).get("model")
    described = None if written is None else json.loads(written)
    if found.is_dir():
        state = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
        described = read_manifest(found)["config"].get("model")
    return state, described
