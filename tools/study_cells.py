"""What is done of a cell and what is left: its stages, and ``cell.json``, its memory on the disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from study_file import Cell

from facetrain import recipe
from facetrain.atomic import replacing
from facetrain.checkpoints.files import BACKBONE, newest_good, sha256
from facetrain.config import Config
from facetrain.errors import InputError
from facetrain.evaluation.result import Result, read_results, tpr_name
from facetrain.preflight import changes

RECIPE = "recipe.yaml"
"""In a cell's folder: what its training is started with."""
TRAINING = "training"
RADIANS = "(rad)"
"""How the name of a number ends that is an angle; results have those among their figures."""
_RECORD = "cell.json"
# Keys that no weight of a single process depends on: a cell may go on with others, on another machine for example.
_FREE = (
    *("output", "evaluate", "data.workers", "data.prefetch", "train.resume", "train.threads", "train.timeout"),
    *("train.keep_checkpoints", "train.log_every", "train.checkpoint_every"),
)


@dataclass(frozen=True)
class Stage:
    """A command of a cell, and what it leaves there."""

    name: str
    command: tuple[str, ...]


def stages_left(cell: Cell) -> list[Stage]:
    """What a cell still needs: training, then evaluations whose command is new or whose file is not as it was left.

    Raises:
        InputError: what is there was trained with another recipe or on other data.
    """
    record = _read(cell)
    _check_same(cell, record)
    done = record["evaluations"] if record["trained"] else {}
    evaluations = [
        Stage(name, command)
        for name, command in cell.evaluations.items()
        if not _is_left(cell.result(name), done.get(name), command)
    ]
    if record["trained"] and evaluations and not _has_model(cell, record["trained"]):
        record["trained"] = None
        evaluations = [Stage(name, command) for name, command in cell.evaluations.items()]
    return ([] if record["trained"] else [_training(cell)]) + evaluations


def begin(cell: Cell) -> None:
    """Write down what a cell is about to be trained with, before its first command."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    with replacing(cell.folder / RECIPE) as growing:
        growing.write_text(recipe.dump(cell.config), encoding="utf-8")
    record = _read(cell)
    record["recipe"], record["data"] = cell.config.model_dump(mode="json"), list(cell.data)
    _write(cell, record)
    for name in cell.evaluations:
        cell.result(name).parent.mkdir(exist_ok=True)


def finish(cell: Cell, stage: Stage, seconds: float) -> None:
    """Check what a stage has left, and remember that it is done.

    Raises:
        InputError: it left no checkpoint, or no result that can be read.
    """
    record = _read(cell)
    if stage.name == TRAINING:
        path, problems = newest_good(cell.folder / "checkpoints", [BACKBONE])
        if path is None:
            raise InputError(f"training left no checkpoint: {problems[0] if problems else 'none is there'}")
        record["trained"] = {"checkpoint": path.name, "sha256": sha256(path / BACKBONE), "seconds": round(seconds, 1)}
        record["evaluations"] = {}
    else:
        path = cell.result(stage.name)
        read_results(path)
        done = {"command": list(stage.command), "sha256": sha256(path), "seconds": round(seconds, 1)}
        record["evaluations"][stage.name] = done
    _write(cell, record)


def numbers(cell: Cell) -> dict[tuple[str, str | None, str], float]:
    """What is known of a cell: (evaluation, part, value) -> number; an angle in radians, all others 0..1.

    A part is which of several results in a file: ``head`` and ``tail`` of a set, or a set's name. Evaluations that are
    not done are left out.

    Raises:
        InputError: the cell was trained with another recipe or on other data.
    """
    record = _read(cell)
    _check_same(cell, record)
    if not record["trained"]:
        return {}
    last = last_records(cell.folder, {"leap"}).get("leap", {})
    found: dict[tuple[str, str | None, str], float] = {
        ("leap", None, key): float(last[key])
        for key in ("sigma_head", "sigma_tail", "sigma_overall", "cloud_share", "cloud_sigma")
        if isinstance(last.get(key), int | float)
    }
    for name, command in cell.evaluations.items():
        if not _is_left(cell.result(name), record["evaluations"].get(name), command):
            continue
        for part, one in _parts(read_results(cell.result(name))):
            found |= {(name, part, tpr_name(entry.fpr)): entry.tpr for entry in one.cells}
            found |= {(name, part, key): value for key, value in one.metrics.items()}
            found |= {(name, part, key): value for key, value in one.figures.items() if key.endswith(RADIANS)}
    return found


def argv(command: Sequence[str], nproc: int | None = None) -> list[str]:
    """A command of a study as this Python runs it, in ``nproc`` processes where the command does not say."""
    words = [sys.executable, "-m", *command]
    return words if nproc is None or "--nproc" in command else [*words, "--nproc", str(nproc)]


def progress(cell: Cell) -> float:
    """The share of a cell's epochs that ``metrics.jsonl`` knows of, 0..1."""
    last = last_records(cell.folder, {"train"}).get("train", {})
    epoch = last.get("epoch", 0.0)
    return min(1.0, epoch / cell.config.train.epochs) if isinstance(epoch, int | float) else 0.0


def last_records(folder: Path, kinds: set[str]) -> dict[str, dict[str, Any]]:
    """The last record of each kind in the last 64 KiB of a run's ``metrics.jsonl``; kinds without one are left out."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - (1 << 16)))
            lines = file.read().splitlines()
    except OSError:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # cut off, or being written
            continue
        if isinstance(record, dict) and record.get("kind") in kinds:
            found.setdefault(record["kind"], record)
        if len(found) == len(kinds):
            break
    return found


def _parts(results: Sequence[Result]) -> list[tuple[str | None, Result]]:
    """Each result of a file with its part's name, None for the whole."""
    whole = results[0].dataset
    groups = {one.dataset.removeprefix(f"{whole}, ") if one is not results[0] else None: one for one in results}
    of_one_set = all(one.dataset.startswith(f"{whole}, ") for one in results[1:])
    return list(groups.items()) if of_one_set else [(one.dataset, one) for one in results]


def _training(cell: Cell) -> Stage:
    return Stage(TRAINING, ("facetrain", "train", str(cell.folder / RECIPE), "train.resume=auto"))


def _is_left(path: Path, done: dict[str, Any] | None, command: Sequence[str]) -> bool:
    if done is None or done["command"] != list(command):
        return False
    try:
        if sha256(path) != done["sha256"]:
            return False
        read_results(path)
    except (OSError, InputError):
        return False
    return True


def _has_model(cell: Cell, trained: dict[str, Any]) -> bool:
    path = cell.folder / "checkpoints" / trained["checkpoint"] / BACKBONE
    return path.is_file() and sha256(path) == trained["sha256"]


def _check_same(cell: Cell, record: dict[str, Any]) -> None:
    if record["recipe"] is None:
        return
    hint = "remove that folder or choose another --out"
    try:  # keys that are new since then have had their defaults
        before = Config.model_validate(record["recipe"]).model_dump(mode="json")
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{cell.folder} was trained with a recipe that means nothing now ({key}): {hint}") from None
    for key, old, new in changes(before, cell.config.model_dump(mode="json")):
        if not key.startswith(_FREE):
            raise InputError(f"{cell.folder} was trained with {key} = {old}, and the study now says {new}: {hint}")
    if record["data"] != list(cell.data):
        raise InputError(f"{cell.folder} was trained on data of another command, {' '.join(record['data'])}: {hint}")


def _read(cell: Cell) -> dict[str, Any]:
    path = cell.folder / _RECORD
    empty: dict[str, Any] = {"recipe": None, "data": [], "trained": None, "evaluations": {}}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return empty
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or record.keys() != empty.keys():
        raise InputError(f"{path} is damaged; remove it, and the cell goes on from its checkpoints")
    return record


def _write(cell: Cell, record: dict[str, Any]) -> None:
    with replacing(cell.folder / _RECORD) as growing:
        growing.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
