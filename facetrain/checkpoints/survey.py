"""What checkpoints a run has, and in which state they are; without torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facetrain.checkpoints.files import MANIFEST, listed, verify
from facetrain.errors import InputError


@dataclass(frozen=True)
class Row:
    """One checkpoint.

    Attributes:
        path: its folder.
        bytes: of all its files.
        seconds: since it was written.
        marks: ``newest`` and ``best`` where it is.
        manifest: what it says of itself; empty where that cannot be read.
        problem: what is wrong, in a few words; empty where nothing is.
    """

    path: Path
    bytes: int
    seconds: float
    marks: tuple[str, ...]
    manifest: dict[str, Any]
    problem: str

    def cells(self) -> list[str]:
        """The row of a table."""
        step, ranks = (str(self.manifest.get(key, "")) for key in ("step", "ranks"))
        state = self.problem or "complete"
        return [self.path.name, step, ranks, _in_units(self.bytes), _age(self.seconds), ", ".join(self.marks), state]


def survey(run: Path) -> list[Row]:
    """The checkpoints of ``run``, oldest first; of their files the sizes are looked at, not the contents.

    Raises:
        InputError: there is none.
    """
    manifests: dict[Path, dict[str, Any]] = {}
    problems: dict[Path, str] = {}
    paths = which(run)
    for path in paths:
        try:
            manifests[path] = verify(path, contents=False)
        except InputError as problem:
            problems[path] = str(problem).replace(f"checkpoint {path}", "it").replace(f"{path}/", "")
    newest = next((path for path in reversed(paths) if path in manifests), None)
    best = (manifests[newest].get("best") or {}).get("step") if newest else None
    rows = []
    for path in paths:
        manifest = manifests.get(path, {})
        marks = ["newest"] if path == newest else []
        marks += ["best"] if manifest.get("step", -1) == best else []
        try:
            seconds, held = time.time() - (path / MANIFEST).stat().st_mtime, size(path)
        except FileNotFoundError:
            continue  # a run that goes on has pruned it meanwhile
        rows.append(Row(path, held, seconds, tuple(marks), manifest, problems.get(path, "")))
    return rows


def which(run: Path) -> list[Path]:
    """The checkpoints that ``run`` means, oldest first: itself, or those in it; InputError where there is none."""
    if (run / MANIFEST).is_file():
        return [run]
    for folder in (run / "checkpoints", run):
        if found := listed(folder):
            return found
    what = "holds no checkpoint" if run.exists() else "does not exist"
    raise InputError(f"{run} {what}; expected a run's folder or one of its checkpoints")


def size(path: Path) -> int:
    """Bytes of a checkpoint's files."""
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def _in_units(count: int) -> str:
    for unit, size_of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size_of:
            return f"{count / size_of:,.1f} {unit}"
    return f"{count} B"


def _age(seconds: float) -> str:
    """``5 s``, ``12 min``, ``3 h``, ``2 days``."""
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
