"""Checkpoint folders as files: which there are, whether they are whole, what their manifests say; without torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facetrain.errors import InputError

FORMAT = 1
MANIFEST = "manifest.json"
PREFIX = "step_"
BACKBONE = "backbone.safetensors"
_MANIFEST_KEYS = {"format": int, "step": int, "num_classes": int, "num_images": int, "config": dict, "files": dict}


def listed(folder: Path) -> list[Path]:
    """The checkpoints under ``folder``, oldest first, verified or not."""
    return sorted(path.parent for path in folder.glob(f"{PREFIX}*/{MANIFEST}"))


def newest_good(folder: Path, names: Sequence[str] | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies (None: there is none), and what is wrong with the newer ones."""
    problems = []
    for path in reversed(listed(folder)):
        try:
            verify(path, names)
        except InputError as problem:
            problems.append(str(problem))
        else:
            return path, problems
    return None, problems


def verify(path: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The manifest of a checkpoint whose files ``names`` (None: all) have the recorded size and SHA-256.

    Raises:
        InputError: which file is missing or differs.
    """
    manifest = read_manifest(path)
    for name in manifest["files"] if names is None else names:
        file, entry = path / name, manifest["files"].get(name)
        if entry is None:
            raise InputError(f"checkpoint {path} does not hold {name}; take an older checkpoint")
        if not file.is_file():
            raise InputError(f"checkpoint {path} lacks {name}; take an older checkpoint")
        size = file.stat().st_size
        if size != entry["bytes"] or sha256(file) != entry["sha256"]:
            raise InputError(
                f"checkpoint {path}: {name} is damaged ({size} bytes, {entry['bytes']} expected); take an older one"
            )
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder; InputError where it is not one or has another format."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        for key, kind in _MANIFEST_KEYS.items():
            if not isinstance(manifest[key], kind):
                raise TypeError
    except OSError:
        raise InputError(f"{path} is not a checkpoint: it has no readable {MANIFEST}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path / MANIFEST} is damaged; take an older checkpoint") from None
    if manifest.get("format") != FORMAT:
        raise InputError(f"checkpoint {path} has format {manifest.get('format')}; this facetrain reads format {FORMAT}")
    return manifest


def last_good(folder: Path) -> str:
    """What a run that broke down can go on from, in words."""
    good = listed(folder)
    return f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"


def put_in_place(growing: Path, final: Path) -> None:
    """Give a finished folder its final name; one that has that name already is removed only afterwards."""
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        os.replace(final, replaced)
    os.replace(growing, final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def set_aside_newer(good: Path) -> None:
    """Rename the checkpoints newer than ``good``, which are damaged, so that none of them counts as the newest."""
    for path in listed(good.parent):
        if path.name > good.name:
            os.replace(path, path.with_name(f"damaged_{path.name}"))


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
