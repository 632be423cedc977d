"""Checkpoint folders as files: which there are, whether they are whole, how one appears and goes; without torch.

A checkpoint grows under a hidden name, ``.step_00000400.writing``, and gets its own when all of it is on the disk. One
that is removed, or replaced by another of the same step, has a hidden name first. So what has its own name is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from facetrain.atomic import replacing, sync_folder
from facetrain.errors import InputError

FORMAT = 2
MANIFEST = "manifest.json"
PREFIX = "step_"
_NUMBERED = re.compile(PREFIX + r"\d{8,}")  # not a copy under another name that a user has put beside them
BACKBONE = "backbone.safetensors"
_MANIFEST_KEYS = {"step": int, "num_classes": int, "num_images": int, "config": dict, "files": dict, "rows": dict}
_MANIFEST_KEYS |= {"ranks": int, "fingerprint": str}
_CHUNK = 1 << 22


def listed(folder: Path) -> list[Path]:
    """The checkpoints under ``folder``, oldest first, verified or not."""
    found = (path.parent for path in folder.glob(f"{PREFIX}*/{MANIFEST}"))
    return sorted(
        (path for path in found if _NUMBERED.fullmatch(path.name)), key=lambda path: int(path.name[len(PREFIX) :])
    )


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


def verify(
    path: Path,
    names: Sequence[str] | None = None,
    progress: Callable[[int], None] = lambda _: None,
    contents: bool = True,
) -> dict[str, Any]:
    """The manifest of a checkpoint whose files ``names`` (None: all) are as it says.

    Args:
        path: the checkpoint.
        names: of the files to look at.
        progress: told how many more bytes have been read, now and then.
        contents: read them and compare their SHA-256; otherwise only their sizes.

    Raises:
        InputError: which file is missing, differs, or does not belong there.
    """
    manifest = read_manifest(path)
    for name in manifest["files"] if names is None else names:
        file, entry = path / name, manifest["files"].get(name)
        if entry is None:
            raise InputError(f"checkpoint {path} does not hold {name}; take an older checkpoint")
        if not file.is_file():
            raise InputError(f"checkpoint {path} lacks {name}; take an older checkpoint")
        if file.resolve().parent != path.resolve():
            raise InputError(f"checkpoint {path}: {name} is a link to a place outside of it, which is not followed")
        size = file.stat().st_size
        if size != entry["bytes"] or (contents and _sha256_or_none(file, progress) != entry["sha256"]):
            raise InputError(
                f"checkpoint {path}: {name} is damaged ({size} bytes, {entry['bytes']} expected); take an older one"
            )
    strays = {file.name for file in path.glob("*.safetensors")} - set(manifest["files"])
    if names is None and strays:
        raise InputError(f"checkpoint {path} holds {min(strays)}, which its {MANIFEST} does not know; remove that file")
    return manifest


def manifest_text(manifest: dict[str, Any]) -> str:
    """A manifest as its file has it: JSON whose last key is the SHA-256 of the rest."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, indent=1).encode()).hexdigest()
    return json.dumps({**rest, "sha256": digest}, indent=1)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder; InputError where it is not one, damaged, or of another format."""
    try:
        text = (path / MANIFEST).read_bytes().decode("ascii")
        manifest: dict[str, Any] = json.loads(text)
        written_as = manifest["format"]
        if written_as == FORMAT:
            _check_manifest(manifest)
            named = re.fullmatch(rf"{PREFIX}(\d+)", path.name)
            if text != manifest_text(manifest) or (named and int(named[1]) != manifest["step"]):
                raise ValueError
    except OSError:
        raise InputError(f"{path} is not a checkpoint: it has no readable {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path / MANIFEST} is damaged; take an older checkpoint") from None
    if written_as != FORMAT:
        raise InputError(
            f"checkpoint {path} has format {str(written_as)[:20]}, this facetrain reads format {FORMAT} only: go on "
            "with the facetrain that wrote it, or train anew"
        )
    return manifest


def _check_manifest(manifest: dict[str, Any]) -> None:
    """TypeError, ValueError or KeyError where something is not as it was written, file names above all."""
    for key, kind in _MANIFEST_KEYS.items():
        if not isinstance(manifest[key], kind):
            raise TypeError
    if not all(isinstance(rows, int) for rows in manifest["rows"].values()):
        raise TypeError
    for name, entry in manifest["files"].items():
        # Nothing that leads out of the folder: no separator, no .., no NUL.
        if not re.fullmatch(r"[A-Za-z0-9_-]+\.safetensors", name):
            raise ValueError
        if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
            raise TypeError


def last_good(folder: Path) -> str:
    """What a run that broke down can go on from, in words."""
    good = listed(folder)
    return f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"


def folder_name(step: int) -> str:
    """Of the checkpoint of a step."""
    return f"{PREFIX}{step:08d}"


def growing_name(final: Path) -> Path:
    """Where a checkpoint grows until it gets its own name."""
    return final.with_name(f".{final.name}.writing")


def commit(final: Path, manifest: dict[str, Any]) -> None:
    """Make a checkpoint of the files under :func:`growing_name`, which are on the disk already: all of it or nothing.

    One that has its name already goes only when the new one has taken its place.

    Raises:
        OSError: the disk refuses; what was there before is there still, or the new one already.
    """
    growing, former = growing_name(final), final.with_name(f".{final.name}.replaced")
    with replacing(growing / MANIFEST) as temporary:
        temporary.write_text(manifest_text({"format": FORMAT, **manifest}))
    sync_folder(growing)
    shutil.rmtree(former, ignore_errors=True)
    if final.exists():
        os.replace(final, former)
    try:
        os.replace(growing, final)
    except OSError:
        if former.exists():
            os.replace(former, final)
        raise
    with suppress(OSError):  # it has its name, and its files are on the disk
        sync_folder(final.parent)
    shutil.rmtree(former, ignore_errors=True)


def prune(newest: Path, keep: int, best: int | None) -> None:
    """Remove all but ``newest``, the checkpoints before it up to ``keep`` in all, and that of step ``best``.

    What the disk does not let go costs space, not the run.
    """
    others = [path for path in listed(newest.parent) if path != newest]
    staying = {path.name for path in others[max(0, len(others) - (keep - 1)) :]}
    if best is not None:
        staying.add(folder_name(best))
    for path in others:
        if path.name not in staying:
            hidden = path.with_name(f".{path.name}.pruned")
            with suppress(OSError):
                shutil.rmtree(hidden, ignore_errors=True)
                os.replace(path, hidden)
            shutil.rmtree(hidden, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove what killed runs left half written or half removed; a checkpoint that was about to be replaced comes back.

    Only for a run that has the folder to itself.
    """
    for path in sorted(folder.glob(f".{PREFIX}*.*")):
        final = path.with_name(path.name.split(".")[1])
        if path.suffix == ".replaced" and (path / MANIFEST).is_file() and not final.exists():
            with suppress(OSError):  # it stays what it is, then
                os.replace(path, final)
        elif path.suffix in (".writing", ".replaced", ".pruned"):
            shutil.rmtree(path, ignore_errors=True)


def replaced(folder: Path) -> list[Path]:
    """What a run that was killed while it exchanged a checkpoint for a new one has left; :func:`tidy` restores it."""
    return sorted(folder.glob(f".{PREFIX}*.replaced"))


def set_aside_newer(good: Path) -> None:
    """Rename the checkpoints newer than ``good``, which cannot be read here, so that none counts as the newest."""
    paths = listed(good.parent)
    for path in paths[paths.index(good) + 1 :]:
        aside, number = path.with_name(f"damaged_{path.name}"), 2
        while aside.exists():
            aside, number = path.with_name(f"damaged_{path.name}_{number}"), number + 1
        os.replace(path, aside)


def sha256(file: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """Hexadecimal SHA-256 of a file's content; ``progress`` is told how many more bytes have been read."""
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while part := handle.read(_CHUNK):
            digest.update(part)
            progress(len(part))
    return digest.hexdigest()


def _sha256_or_none(file: Path, progress: Callable[[int], None]) -> str | None:
    """A disk that cannot give back what it holds is damage like any other."""
    try:
        return sha256(file, progress)
    except OSError:
        return None
