"""What a run left in its folder, read back for its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.data.dataset import Images, open_images
from facetrain.errors import InputError
from facetrain.evaluation.pairs import PairSet, Verification, folder_name, names_apart, read_bin, read_verification

DEGREES = 180
"""Bins of a histogram of angles: one degree each, from 0."""
_LEAP_NUMBERS = ("sigma_head", "sigma_tail", "sigma_overall", "cloud_share", "cloud_sigma")


@dataclass(frozen=True, eq=False)
class Angles:
    """Angles to the class centres at the end of an epoch: counts by degree, (180,) int64, of head and tail classes.

    ``head`` is None where the recipe drew no line between them: ``tail`` then counts the angles of all classes.
    """

    step: int
    epoch: float
    head: NDArray[np.int64] | None
    tail: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PeopleMap:
    """Embeddings of a few people's training images after ``step`` updates: (n, D) float32 of length 1.

    ``labels`` (n,) int64 are their classes; ``head`` (n,) bool and ``images`` (n,) int64, the number of training
    images, are those of the class.
    """

    step: int
    embeddings: NDArray[np.float32]
    labels: NDArray[np.int64]
    head: NDArray[np.bool_]
    images: NDArray[np.int64]


@dataclass
class Run:
    """A run folder: resolved recipe, versions, log lines by kind, and the last result of each pair set.

    Pair sets come in the order of metrics.jsonl, which is the recipe's; all else by step.
    """

    config: str
    versions: dict[str, Any]
    train: list[dict[str, Any]] = field(default_factory=list)
    verifications: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    results: list[tuple[str, Verification]] = field(default_factory=list)
    leap: list[dict[str, Any]] = field(default_factory=list)
    angles: list[Angles] = field(default_factory=list)
    maps: list[PeopleMap] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """Wall time of training; a resumed run's clock starts again, so its parts are added."""
        total, last = 0.0, 0.0
        for line in self.train:
            now = float(line.get("seconds", 0.0))
            if now < last:
                total += last
            last = now
        return total + last or None


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        InputError: it holds no metrics.jsonl, or a file in it is damaged.
    """
    log = folder / "metrics.jsonl"
    if not log.is_file():
        raise InputError(f"{folder} is not a run's folder: it has no metrics.jsonl; give the folder that output named")
    config = folder / "config.yaml"
    versions = folder / "versions.json"
    try:
        run = Run(
            config.read_text(encoding="utf-8") if config.is_file() else "",
            dict(json.loads(versions.read_text(encoding="utf-8"))) if versions.is_file() else {},
        )
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{versions if config.is_file() else config} cannot be read: {error}") from None
    _read_log(log, run)
    order = list(run.verifications)  # the recipe's
    found = {path.stem: path for path in sorted((folder / "verification").glob("*.npz"))}
    names = sorted(found, key=lambda name: order.index(name) if name in order else len(order))
    run.results = [(name, read_verification(found[name])) for name in names]
    run.maps = [read_map(path) for path in sorted((folder / "leap").glob("map_*.npz"))]
    return run


def read_map(path: Path) -> PeopleMap:
    """Read leap/map_STEP.npz of a run's folder.

    Raises:
        InputError: not such a file.
    """
    try:
        step = int(path.stem.removeprefix("map_"))
        with np.load(path, allow_pickle=False) as file:
            rows, labels, head, images = (file[key] for key in ("embeddings", "labels", "head", "images"))
    except Exception as error:  # a zip archive of arrays can be damaged in any number of ways
        raise InputError(f"{path} is not a readable map of people: damaged ({type(error).__name__})") from None
    kinds = (rows.dtype.kind, labels.dtype.kind, head.dtype.kind, images.dtype.kind)
    sizes = {labels.shape, head.shape, images.shape}
    if kinds != ("f", "i", "b", "i") or rows.ndim != 2 or sizes != {rows.shape[:1]} or not rows.size:
        raise InputError(
            f"{path} is not a map of people: expected embeddings (n, D) of floats and labels, head and images (n,), "
            f"not {rows.shape}, {labels.shape}, {head.shape} and {images.shape}"
        )
    if not np.isfinite(rows).all() or (images < 1).any():
        raise InputError(f"{path} is not a map of people: an embedding is not finite, or a class has no images")
    return PeopleMap(step, rows.astype(np.float32), labels.astype(np.int64), head, images.astype(np.int64))


def _read_log(path: Path, run: Run) -> None:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    by_step: dict[str, dict[int, Any]] = {"train": {}, "leap": {}, "angles": {}}
    checks: dict[str, dict[int, dict[str, Any]]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step, kind = int(entry["step"]), entry["kind"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):  # cut short by a kill
                continue
            raise InputError(
                f"{path}:{number} is damaged; expected one JSON object with kind and step a line"
            ) from None
        if kind in by_step:  # a resumed run makes some steps again: the last counts
            by_step[kind][step] = _checked(entry, kind, f"{path}:{number}")
        elif kind == "verification":
            checks.setdefault(str(entry.get("set")), {})[step] = entry
    run.train, run.leap, run.angles = ([found[step] for step in sorted(found)] for found in by_step.values())
    run.verifications = {name: [found[step] for step in sorted(found)] for name, found in checks.items()}


def _checked(entry: dict[str, Any], kind: str, where: str) -> Any:
    """What is kept of a log line."""
    if kind == "angles":
        counts = {key: entry[key] for key in ("head", "tail") if key in entry}
        whole = all(
            isinstance(found, list)
            and len(found) == DEGREES
            and all(type(n) is int and 0 <= n < 1 << 53 for n in found)
            for found in counts.values()
        )
        if not whole or "tail" not in counts or not _is_number(entry.get("epoch")):
            raise InputError(
                f"{where} is damaged; expected angles with an epoch and {DEGREES} counts of head and of tail"
            )
        arrays = {key: np.array(found, np.int64) for key, found in counts.items()}
        return Angles(int(entry["step"]), float(entry["epoch"]), arrays.get("head"), arrays["tail"])
    if kind == "leap" and not all(entry.get(key) is None or _is_number(entry[key]) for key in _LEAP_NUMBERS):
        raise InputError(f"{where} is damaged; expected a number or null for each of {', '.join(_LEAP_NUMBERS)}")
    return entry


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def recorded_images(config: str) -> Images | None:
    """The training images the recipe names; None where they are not there any more."""
    data = recorded_section(config, "data")
    try:
        return open_images(Path(data["path"]), data.get("reader", "native"))
    except (InputError, KeyError, TypeError, OSError):
        return None


def recorded_sets(config: str) -> list[PairSet]:
    """Those of the recipe's pair sets that are still there."""
    sets = recorded_section(config, "evaluate").get("sets") or []
    found = []
    try:
        paths = [Path(path) for path in (sets if isinstance(sets, Sequence) and not isinstance(sets, str) else [sets])]
        names = names_apart([(folder_name(path), path.stem) for path in paths])
    except (InputError, TypeError):
        return []
    for path, name in zip(paths, names, strict=True):
        with suppress(InputError):
            found.append(replace(read_bin(path), name=name))
    return found


def recorded_section(config: str, name: str) -> dict[str, Any]:
    """A section of a recipe as it was written; empty where there is none."""
    import yaml

    try:
        section = yaml.safe_load(config)[name]
    except (yaml.YAMLError, KeyError, TypeError):
        return {}
    return section if isinstance(section, dict) else {}
