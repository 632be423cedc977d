"""Checkpoints: a folder of safetensors files and a manifest, complete or absent, readable by any number of ranks.

```
checkpoints/step_00000400/
  backbone.safetensors             weights and running statistics; its metadata hold the model section of the recipe
  optimizer.safetensors            "parameter name/state name" of the backbone's optimiser
  classifier-00000-of-00002.safetensors   weight, momentum, ... of the classes start..stop-1 named in its metadata
  leap-00000-of-00002.safetensors         centres, angles and rows not yet counted, of the same classes
  manifest.json                    written last: step, recipe, versions, size and SHA-256 of each file
```

Sharded tensors carry the global numbers of their first and last class, so that another number of ranks reads just the
rows it owns. There is no pickle anywhere. Ranks write into a folder with another name, which is renamed when all have
finished. The position in the data and all random numbers are functions of the step and need no state.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from facetrain.atomic import replacing
from facetrain.checkpoint_files import (
    BACKBONE,
    FORMAT,
    MANIFEST,
    PREFIX,
    listed,
    newest_good,
    put_in_place,
    read_manifest,
    sha256,
    sync_folder,
    verify,
)
from facetrain.checkpoint_shards import Shard
from facetrain.config import ModelConfig
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.models import build_backbone

_EXPECTED = "expected a run's folder, one of its checkpoints or an exported .safetensors file"


def save(
    folder: Path,
    step: int,
    *,
    backbone: nn.Module,
    model: ModelConfig,
    optimizer: torch.optim.Optimizer,
    shards: Sequence[Shard],
    about: dict[str, Any],
    world: World,
    keep: int,
) -> Path:
    """Write one checkpoint, all ranks together, and remove the oldest beyond ``keep``.

    Args:
        folder: where checkpoints lie; the new one is ``folder/step_%08d``.
        step: updates made so far.
        backbone: written by rank 0; running statistics must be equal on all ranks.
        model: how to build the backbone again.
        optimizer: the backbone's.
        shards: this rank's pieces of what is spread over ranks by class.
        about: what else the manifest records (recipe, versions, number of classes).
        world: the ranks; they all call this.
        keep: how many of the newest stay.

    Returns:
        The checkpoint's folder.
    """
    final = folder / f"{PREFIX}{step:08d}"
    growing = folder / f".{final.name}.writing"
    if world.rank == 0:
        shutil.rmtree(growing, ignore_errors=True)
        growing.mkdir(parents=True)
    world.barrier()
    of = f"{world.rank:05d}-of-{world.size:05d}"
    written = [_write(growing / f"{shard.name}-{of}.safetensors", shard.tensors, shard.span) for shard in shards]
    if world.rank == 0:
        described = {"model": model.model_dump_json(), "step": str(step)}
        written.append(_write(growing / BACKBONE, backbone.state_dict(), described))
        if state := _optimizer_state(backbone, optimizer):  # plain SGD has none
            written.append(_write(growing / "optimizer.safetensors", state, {}))
    files = {name: entry for part in world.gather_objects(dict(written)) for name, entry in part.items()}
    if world.rank == 0:
        manifest = {"format": FORMAT, "step": step, "ranks": world.size, **about, "files": files}
        with replacing(growing / MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1))
        sync_folder(growing)
        put_in_place(growing, final)
        others = [path for path in listed(folder) if path != final]
        for old in others[: max(0, len(others) - (keep - 1))]:
            shutil.rmtree(old, ignore_errors=True)  # what cannot be removed costs space, not the run
    world.barrier()
    return final


def load_training(
    path: Path, *, backbone: nn.Module, optimizer: torch.optim.Optimizer, shards: dict[str, Shard]
) -> tuple[int, dict[str, Tensor]]:
    """Fill a freshly built training state, in place, from a checkpoint of any number of ranks.

    Args:
        path: the checkpoint.
        backbone: filled.
        optimizer: the backbone's; filled.
        shards: key of the recipe that decides what a piece holds -> this rank's piece; filled.

    Returns:
        (updates it has made, the pieces' loose tensors of all ranks).

    Raises:
        InputError: the checkpoint is of another model, optimiser, classifier or data set.
    """
    _fill_module(backbone, path / BACKBONE)
    manifest = read_manifest(path)
    if "optimizer.safetensors" in manifest["files"]:
        _fill_optimizer(backbone, optimizer, path / "optimizer.safetensors")
    loose: dict[str, Tensor] = {}
    for key, shard in shards.items():
        loose |= shard.fill(path, _opened, f"{key} in the recipe")
    return int(manifest["step"]), loose


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
        return path
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
    file = found / BACKBONE if found.is_dir() else found
    with _opened(file) as tensors:
        described = (tensors.metadata() or {}).get("model")
    if described is None:
        raise InputError(f"{file} does not say which model it holds; expected a file that facetrain wrote")
    model = ModelConfig.model_validate_json(described)
    backbone = build_backbone(model)
    _fill_module(backbone, file)
    return backbone.eval(), model


def fingerprint(path: Path) -> str:
    """SHA-256 of the backbone's file in its checkpoint, which names the model in results, exported or not."""
    found = find(path)
    if found.is_dir():
        return str(read_manifest(found)["files"][BACKBONE]["sha256"])
    with _opened(found) as tensors:
        return (tensors.metadata() or {}).get("fingerprint") or sha256(found)


def write_backbone(file: Path, backbone: nn.Module, model: ModelConfig, **about: str) -> None:
    """Write a backbone alone, with its description in the file's metadata."""
    _write(file, backbone.state_dict(), {"model": model.model_dump_json(), **about})


def _optimizer_state(backbone: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in backbone.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _fill_optimizer(backbone: nn.Module, optimizer: torch.optim.Optimizer, file: Path) -> None:
    parameters = dict(backbone.named_parameters())
    expected = {"SGD": {"momentum_buffer"}, "AdamW": {"step", "exp_avg", "exp_avg_sq"}}[type(optimizer).__name__]
    with _opened(file) as tensors:
        for key in tensors.keys():  # noqa: SIM118 - not a dict
            name, state = key.rsplit("/", 1)
            if name not in parameters or state not in expected:
                raise InputError(f"{file} holds {key}, which the recipe's model and optim.name do not have")
            value = tensors.get_tensor(key).clone()  # as it comes it is a view of the file, which will be pruned
            parameter = parameters[name]
            if value.dim():
                value = value.to(parameter.device).contiguous(memory_format=_layout(parameter))
            optimizer.state[parameter][state] = value


def _layout(tensor: Tensor) -> torch.memory_format:
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _fill_module(module: nn.Module, file: Path) -> None:
    with _opened(file) as tensors:
        state = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118 - not a dict
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:160]
        raise InputError(f"{file} is of another model than the recipe's: {problem}") from None


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors: {error}") from None


def _write(file: Path, tensors: dict[str, Tensor], described: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Write and sync one file; its name, size and SHA-256."""
    file.touch()
    usual = file.stat().st_mode  # safetensors would let nobody else read the file
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file, described)
    except SafetensorError as error:  # what a full disk becomes there
        raise OSError(errno.ENOSPC, str(error), str(file)) from None
    file.chmod(usual)
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())
    return file.name, {"bytes": file.stat().st_size, "sha256": sha256(file)}
