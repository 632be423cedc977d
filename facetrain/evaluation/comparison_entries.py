"""What a comparison puts side by side: runs and result files, merged where they speak of one model, with names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from facetrain.checkpoints.files import listed, read_manifest
from facetrain.errors import InputError
from facetrain.evaluation.pairs import Verification
from facetrain.evaluation.result import Result, read_results, score_histogram, thinned
from facetrain.evaluation.rundir import Run, read_run
from facetrain.evaluation.scores import FOLDS, roc

Test = tuple[str, str]
"""Protocol and data set: results of one test stand in one column."""


@dataclass
class Entry:
    """A row of the comparison: one model, its results by test, and its run where that was given."""

    name: str
    results: dict[Test, Result] = field(default_factory=dict)
    run: Run | None = None
    sources: list[Path] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """SHA-256 of the models that its results are of, each once."""
        return list(dict.fromkeys(result.model for result in self.results.values() if result.model))


def read_entries(words: Sequence[str]) -> list[Entry]:
    """The rows that command-line words ask for, in their order.

    A word is PATH or NAME=PATH, a run's folder or a .json file of results. What has the same NAME is one row. Without a
    name, results of a model that is in a row already join it (unless it has a result of that test), and a row is called
    as its folder or its model.

    Raises:
        InputError: a path is missing or neither, a file is damaged, or a NAME has two results of one test.
    """
    named: dict[str, Entry] = {}
    rows: list[tuple[Entry, tuple[str, ...]]] = []  # with the path that an unnamed one is called by; () for a named one
    for word in words:
        name, path = _split(word)
        run, results = _read(path, name)
        if name:
            if name not in named:
                named[name] = Entry(name)
                rows.append((named[name], ()))
            _join(named[name], path, run, results)
            continue
        if run is not None:
            entry = Entry("")
            rows.append((entry, path.resolve().parts[1:]))
            _join(entry, path, run, results)
            continue
        for result in results:
            home = _home(result, [entry for entry, _ in rows if entry.name not in named])
            if home is None:
                home = Entry("")
                rows.append((home, Path(result.model_name).parts or (path.stem,)))
            _join(home, path, None, [result])
    _give_names(rows)
    return [entry for entry, _ in rows]


def verification_result(name: str, found: Verification, model: str, model_name: str) -> Result:
    """A run's scores on a pair set as a result; without intervals, since a .bin does not say who is on its images."""
    points = roc(found.scores, found.same)
    return Result(
        protocol="lfw",
        dataset=name,
        model=model,
        model_name=model_name,
        switches={  # as facetrain eval lfw names them
            "accuracy": f"{found.by}'s, {FOLDS} folds in file order",
            "±": "standard error (ddof 1)" if found.by == "facex-zoo" else "standard deviation (ddof 0)",
            "pairs": len(found.same),
            "flip": found.flip,
            "FPR rule": found.rule,
        },
        metrics={"accuracy": found.accuracy, "accuracy_std": found.accuracy_std},
        cells=found.decided,
        curves={"roc": thinned(points.fpr, points.tpr)},
        histogram=score_histogram(found.scores[found.same], found.scores[~found.same]),
        images=found.images or 2 * len(found.same),
    )


def run_model(folder: Path, run: Run) -> str:
    """SHA-256 of the model that a run's last verification judged; "" where its checkpoint is not there any more."""
    steps = [int(lines[-1]["step"]) for lines in run.verifications.values() if lines]
    for checkpoint in reversed(listed(folder / "checkpoints")):
        try:
            manifest = read_manifest(checkpoint)
            if steps and int(manifest["step"]) == max(steps):
                return str(manifest["fingerprint"])
        except (InputError, KeyError, TypeError):
            continue
    return ""


def _split(word: str) -> tuple[str, Path]:
    name, mark, path = word.partition("=")
    if not mark or Path(word).exists():
        return "", Path(word)
    if not name.strip() or not path:
        raise InputError(f"{word}: expected NAME=PATH with a name and a path")
    return name.strip(), Path(path)


def _read(path: Path, name: str) -> tuple[Run | None, list[Result]]:
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a run's folder or a .json file of facetrain eval")
    if not path.is_dir():
        return None, read_results(path)
    run = read_run(path)
    model = run_model(path, run)
    results = [verification_result(one, found, model, name or path.resolve().name) for one, found in run.results]
    return run, results


def _join(entry: Entry, path: Path, run: Run | None, results: Sequence[Result]) -> None:
    if run is not None and entry.run is not None:
        raise InputError(f"{entry.name} names two runs; give each a name of its own")
    entry.run = run or entry.run
    entry.sources.append(path)
    for result in results:
        test = (result.protocol, result.dataset)
        if test in entry.results:
            raise InputError(
                f"{path}: {entry.name} has two results on {result.dataset} ({result.protocol}); "
                "give each a name of its own"
            )
        entry.results[test] = result


def _home(result: Result, entries: Sequence[Entry]) -> Entry | None:
    """The unnamed row that an unnamed result belongs to: of the same model, without a result of this test."""
    for entry in entries:
        if result.model in entry.models and (result.protocol, result.dataset) not in entry.results:
            return entry
    return None


def _give_names(rows: Sequence[tuple[Entry, tuple[str, ...]]]) -> None:
    """Call unnamed rows by the end of their path, as much as tells them apart; where nothing does, add their file."""
    taken = {entry.name for entry, parts in rows if not parts}
    unnamed = [(entry, parts) for entry, parts in rows if parts]
    depth = dict.fromkeys(range(len(unnamed)), 1)
    while True:
        names = ["/".join(parts[-depth[i] :]) for i, (_, parts) in enumerate(unnamed)]
        count = Counter([*names, *taken])
        deeper = [i for i, (_, parts) in enumerate(unnamed) if count[names[i]] > 1 and depth[i] < len(parts)]
        if not deeper:
            break
        for i in deeper:
            depth[i] += 1
    names = [
        f"{name} ({entry.sources[0].stem})" if count[name] > 1 else name
        for name, (entry, _) in zip(names, unnamed, strict=True)
    ]
    for name, (entry, _) in zip(names, unnamed, strict=True):
        entry.name = next(c for c in (name, *(f"{name} {n}" for n in range(2, len(rows) + 2))) if c not in taken)
        taken.add(entry.name)
