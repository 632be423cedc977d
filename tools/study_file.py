"""A study's YAML file -> settings, methods and cells, every mistake one line with its place; see configs/study/."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from study_commands import filled, words_of
from study_nodes import NAME, check_keys, child, entries, items, text_of

from facetrain import recipe
from facetrain.config import Config
from facetrain.strictyaml import Node, merge, mistake, read

_DRIVERS = ("output", "seed")  # what this driver sets for each cell
_STUDY = ("output", "seeds", "paper", "recipes", "keys", "evaluations", "settings", "methods", "columns")
_SETTING = ("title", "recipes", "keys", "data", "evaluations", "paper")
_METHOD = ("title", "recipes", "keys", "baseline")
_COLUMN = ("title", "evaluation", "part", "value", "unit", "paper")


@dataclass(frozen=True)
class Column:
    """A number of the table: ``value`` of what an evaluation left, or of the run's own ``leap`` records."""

    title: str
    evaluation: str
    part: str | None
    """Which of several results in a file, by the name of its data set."""
    value: str
    unit: str
    """``%`` for rates, ``rad`` for angles."""
    paper: str | None
    """The column of the paper's table."""


@dataclass(frozen=True)
class Cell:
    """One run: a setting, a method and a seed."""

    setting: str
    method: str
    seed: int
    config: Config
    data: tuple[str, ...]
    """The command that makes its data; empty: somebody else does."""
    evaluations: Mapping[str, tuple[str, ...]]
    """The command of each, which leaves ``results/NAME.json`` in the cell's folder."""

    @property
    def name(self) -> str:
        """As in ``--only`` and on the disk."""
        return f"{self.setting}/{self.method}/seed_{self.seed}"

    @property
    def folder(self) -> Path:
        """Where the run and its results are."""
        return self.config.output

    def result(self, evaluation: str) -> Path:
        """The file that an evaluation leaves."""
        return self.folder / "results" / f"{evaluation}.json"


@dataclass(frozen=True)
class Study:
    """What a study file says."""

    path: Path
    out: Path
    seeds: tuple[int, ...]
    settings: Mapping[str, str]
    """Name -> title, in the file's order."""
    methods: Mapping[str, str]
    baselines: Mapping[str, str]
    """Method -> the one it is compared with."""
    columns: tuple[Column, ...]
    """Empty: whatever the evaluations hold."""
    cells: tuple[Cell, ...]
    """By seed, then setting, then method, so that whole comparisons are there early."""
    paper: Mapping[tuple[str, str, str], float]
    """The paper's numbers by (setting, method, column's ``paper``), in %."""


def read_study(path: Path, out: Path | None = None) -> Study:
    """Read a study and every recipe it names.

    Args:
        path: the YAML file; recipes are relative to the file that names them, all else to the current directory.
        out: where the cells go instead of the file's ``output``.

    Raises:
        InputError: the first mistake, one line with file and line.
    """
    tree = read(path)
    check_keys(tree, _STUDY, "")
    settings, methods = (entries(tree, key, keys) for key, keys in (("settings", _SETTING), ("methods", _METHOD)))
    out = out or Path(text_of(tree, "output", needed=True))
    seeds = _seeds(tree)
    shared = _evaluations(tree)
    paper_names = {name: text_of(node, "paper") for name, node in settings.items()}
    each = [
        _cell(out, tree, (setting, setting_node), (method, method_node), shared)
        for setting, setting_node in settings.items()
        for method, method_node in methods.items()
    ]
    return Study(
        path=path,
        out=out,
        seeds=seeds,
        settings={name: text_of(node, "title") or name for name, node in settings.items()},
        methods={name: text_of(node, "title") or name for name, node in methods.items()},
        baselines=_baselines(methods),
        columns=_columns(tree, settings),
        cells=tuple(made(seed) for seed in seeds for made in each),
        paper=_paper(tree, paper_names, methods),
    )


def _cell(
    out: Path, tree: Node, setting: tuple[str, Node], method: tuple[str, Node], shared: Mapping[str, Node]
) -> Callable[[int], Cell]:
    """The cell of a setting and a method for any seed; everything is checked here, once for all seeds."""
    where, folder = method[1].where, out / setting[0] / method[0]
    layers = [*_layers(tree), *_layers(setting[1]), *_layers(method[1])]
    if not layers:
        raise mistake(where, f"methods.{method[0]}: no recipes here, in its setting or at the top")
    given = {"output": Node(str(folder), where, str(folder)), "seed": Node(0, where, "0")}
    laid = functools.reduce(merge, [*layers, Node(given, where)])
    config = recipe.validated(laid, f"{where} on settings.{setting[0]}")
    data = str(config.data.path.parent)
    maker = _command(setting[1], "data")
    evaluations = {name: words_of(node, ("run", "output", "data")) for name, node in shared.items()}
    evaluations |= {name: words_of(node, ("run", "output", "data")) for name, node in _evaluations(setting[1]).items()}

    def made(seed: int) -> Cell:
        run = folder / f"seed_{seed}"
        commands = {
            name: filled(words, {"run": str(run), "output": str(run / "results" / f"{name}.json"), "data": data})
            for name, words in evaluations.items()
        }
        of_seed = config.model_copy(update={"output": run, "seed": seed})
        return Cell(setting[0], method[0], seed, of_seed, filled(maker, {"data": data}), commands)

    return made


def _layers(node: Node) -> list[Node]:
    """The recipes and keys of a part of the file, each of which goes over those before it."""
    found = []
    for item in items(node, "recipes"):
        if not isinstance(item.value, str):
            raise mistake(item.where, "recipes: expected a list of files in brackets: [base.yaml, cosface.yaml]")
        found.append(read(Path(item.where.file or ".").parent / item.value))
    keys = child(node, "keys")
    if keys is not None:
        if not isinstance(keys.value, dict):
            raise mistake(keys.where, "keys: expected keys of a recipe below it, as a recipe has them")
        for key in _DRIVERS:
            if key in keys.value:
                raise mistake(keys.value[key].where, f"keys.{key}: the study sets it for each run; leave it out")
        found.append(keys)
    return found


def _seeds(tree: Node) -> tuple[int, ...]:
    values = [item.value for item in items(tree, "seeds")]
    whole = all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values)
    if not values or not whole or len(set(values)) < len(values):
        node = child(tree, "seeds")
        raise mistake(node.where if node else tree.where, "seeds: expected different whole numbers, as [0, 1, 2]")
    return tuple(values)


def _evaluations(node: Node) -> dict[str, Node]:
    found = child(node, "evaluations")
    if found is None:
        return {}
    if not isinstance(found.value, dict):
        raise mistake(found.where, "evaluations: expected lines of the form name: facetrain eval ...")
    for name, command in found.value.items():
        if not NAME.fullmatch(name) or name == "leap":
            raise mistake(command.where, f"evaluations.{name}: choose another name: letters and digits, not leap")
        text = command.value if isinstance(command.value, str) else ""
        if not text.startswith("facetrain ") or "{run}" not in text or "{output}" not in text:
            raise mistake(
                command.where,
                f"evaluations.{name}: expected a command like facetrain eval openset {{run}} DATA --output {{output}}",
            )
    return dict(found.value)


def _command(node: Node, key: str) -> tuple[str, ...]:
    found = child(node, key)
    if found is None:
        return ()
    if not isinstance(found.value, str) or not found.value.startswith("facetrain "):
        raise mistake(found.where, f"{key}: expected a command like facetrain data demo {{data}} --people 1000")
    return words_of(found, ("data",))


def _baselines(methods: Mapping[str, Node]) -> dict[str, str]:
    found = {}
    for name, node in methods.items():
        baseline = child(node, "baseline")
        if baseline is not None:
            if baseline.value not in methods or baseline.value == name:
                others = ", ".join(other for other in methods if other != name)
                raise mistake(
                    baseline.where,
                    f"methods.{name}.baseline = {baseline.text}: expected another method of this study: {others}",
                )
            found[name] = str(baseline.value)
    return found


def _columns(tree: Node, settings: Mapping[str, Node]) -> tuple[Column, ...]:
    known = {"leap", *(name for node in (tree, *settings.values()) for name in _evaluations(node))}
    found = []
    for item in items(tree, "columns"):
        check_keys(item, _COLUMN, "columns")
        evaluation, value = text_of(item, "evaluation", needed=True), text_of(item, "value", needed=True)
        if evaluation not in known:
            raise mistake(item.where, f"columns: evaluation = {evaluation}: expected one of {', '.join(sorted(known))}")
        unit = text_of(item, "unit") or "%"
        if unit not in ("%", "rad"):
            raise mistake(item.where, f"columns: unit = {unit}: expected % or rad")
        title = text_of(item, "title") or f"{evaluation} {value}"
        found.append(
            Column(title, evaluation, text_of(item, "part") or None, value, unit, text_of(item, "paper") or None)
        )
    return tuple(found)


def _paper(tree: Node, settings: Mapping[str, str], methods: Mapping[str, Node]) -> dict[tuple[str, str, str], float]:
    node = child(tree, "paper")
    if node is None:
        return {}
    path = Path(node.where.file or ".").parent / str(node.value)
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        rows = list(csv.DictReader(lines))
        numbers = {
            (row["setting"], row["method"], key): float(value)
            for row in rows
            for key, value in row.items()
            if key not in ("setting", "method")
        }
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        raise mistake(
            node.where, f"paper = {node.text}: expected a .csv with the columns setting, method and numbers"
        ) from None
    titles = {name: text_of(method, "title") or name for name, method in methods.items()}
    return {
        (setting, method, column): value
        for setting, theirs in settings.items()
        for method, title in titles.items()
        for (row, row_method, column), value in numbers.items()
        if theirs and (row, row_method) == (theirs, title)
    }
