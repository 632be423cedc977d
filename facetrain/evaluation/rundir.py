"""What a run left in its folder, read back for its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from facetrain.data.dataset import Images, open_images
from facetrain.errors import InputError
from facetrain.evaluation.pairs import PairSet, Verification, folder_name, names_apart, read_bin, read_verification


@dataclass
class Run:
    """A run folder: resolved recipe, versions, log lines by kind, and the last result of each pair set.

    Pair sets come in the order of metrics.jsonl, which is the recipe's.
    """

    config: str
    versions: dict[str, Any]
    train: list[dict[str, Any]] = field(default_factory=list)
    verifications: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    results: list[tuple[str, Verification]] = field(default_factory=list)

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
    return run


def _read_log(path: Path, run: Run) -> None:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    train: dict[int, dict[str, Any]] = {}
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
        if kind == "train":
            train[step] = entry  # a resumed run makes some steps again: the last counts
        elif kind == "verification":
            checks.setdefault(str(entry.get("set")), {})[step] = entry
    run.train = [train[step] for step in sorted(train)]
    run.verifications = {name: [found[step] for step in sorted(found)] for name, found in checks.items()}


def recorded_images(config: str) -> Images | None:
    """The training images the recipe names; None where they are not there any more."""
    data = _section(config, "data")
    try:
        return open_images(Path(data["path"]), data.get("reader", "native"))
    except (InputError, KeyError, TypeError, OSError):
        return None


def recorded_sets(config: str) -> list[PairSet]:
    """Those of the recipe's pair sets that are still there."""
    sets = _section(config, "evaluate").get("sets") or []
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


def _section(config: str, name: str) -> dict[str, Any]:
    import yaml

    try:
        section = yaml.safe_load(config)[name]
    except (yaml.YAMLError, KeyError, TypeError):
        return {}
    return section if isinstance(section, dict) else {}
