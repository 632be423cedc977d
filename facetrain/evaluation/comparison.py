"""Runs and results side by side, as one HTML page that opens offline; the table alone: comparison_table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from facetrain.atomic import check_folder, result_file
from facetrain.errors import InputError
from facetrain.evaluation import comparison_plots as plots
from facetrain.evaluation.comparison_entries import Entry, Test, read_entries
from facetrain.evaluation.comparison_table import (
    OWN_UNIT,
    Column,
    Format,
    Value,
    any_figure,
    columns,
    differences,
    every_test,
    headings,
    percent,
    render,
    table_6,
)
from facetrain.evaluation.leap_view import comparison_figures
from facetrain.evaluation.result import switch_text
from facetrain.evaluation.rundir import Run
from facetrain.evaluation.scores import FEW
from facetrain.strictyaml import parse

_TRIVIAL = {"output"}  # differs in any two runs
_ABSENT = "–"
SUFFIXES: dict[str, Format] = {".md": "markdown", ".csv": "csv", ".json": "json", ".tex": "latex"}


def compare(
    words: Sequence[str],
    *,
    output: Path | None = None,
    format: Format | None = None,
    table: Path | None = None,
    table6: bool = False,
) -> None:
    """What ``facetrain report`` does with several sources: a page, or a table, or both; says what is not comparable.

    Args:
        words: PATH or NAME=PATH each.
        output: the page; None: ``comparison.html`` in the current folder, or no page where a table is asked for.
        format: of the table; None: as the suffix of ``table`` says, or no table.
        table: a file for the table; None: standard output.
        table6: only the columns of LEAP's Table 6.

    Raises:
        InputError: see :func:`read_entries`; an output of another kind, or no column to show.
    """
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"output {output} must be a .html file; --table is for the table")
    if table is not None and format is None:
        if table.suffix.lower() not in SUFFIXES:
            raise InputError(f"table {table} must end in {', '.join(SUFFIXES)}, or give its --format")
        format = SUFFIXES[table.suffix.lower()]
    for written in filter(None, (output, table)):
        check_folder(written.parent)
    entries = read_entries(words)
    chosen = table_6(entries) if table6 else columns(entries)
    if format is not None and not chosen:
        raise InputError("no result among them for a table; " + ("try --columns all" if table6 else "evaluate first"))
    if output is not None or format is None:
        page = write_comparison(entries, output or Path("comparison.html"))
        print(page, file=sys.stderr if format is not None and table is None else sys.stdout)
    for one in differences(entries):
        print(f"facetrain: {one}", file=sys.stderr)
    if format is None:
        return
    text = render(entries, chosen, format)
    if table is None:
        sys.stdout.write(text)
        return
    with result_file(table) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(table)


def write_comparison(entries: Sequence[Entry], path: Path, *, title: str | None = None) -> Path:
    """Write the page.

    Args:
        entries: the rows, see :func:`facetrain.evaluation.comparison_entries.read_entries`.
        path: the .html file.
        title: the page's; None: the rows' names.

    Returns:
        ``path``.

    Raises:
        InputError: it cannot be written, or a run's config.yaml is damaged.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("facetrain", "evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = percent
    every = columns(entries)
    runs = [(entry.name, entry.run or Run("", {})) for entry in entries]  # one for each row, so that colours agree
    page = environment.get_template("comparison.html.j2").render(
        title=title or _title([entry.name for entry in entries]),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        names=[entry.name for entry in entries],
        few=FEW,
        differences=differences(entries),
        paper=_table(entries, table_6(entries)),
        tests=[
            _test(entries, test, [column for column in every if column.test == test]) for test in every_test(entries)
        ],
        training=_training(entries),
        leap=comparison_figures(runs),
        recipes=recipe_differences([entry for entry in entries if entry.run is not None]),
        runs=[(number, entry.name) for number, entry in enumerate(entries) if entry.run is not None],
        details=[(number, entry, result) for number, entry in enumerate(entries) for result in entry.results.values()],
    )
    with result_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def recipe_differences(entries: Sequence[Entry]) -> list[tuple[str, list[str]]]:
    """(key, each run's value) of what is not the same in the runs' resolved recipes.

    Raises:
        InputError: a recipe is damaged.
    """
    recipes = [_flat(entry) for entry in entries]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if key not in _TRIVIAL)
    rows = [(key, [recipe.get(key, _ABSENT) for recipe in recipes]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(entry: Entry) -> dict[str, str]:
    assert entry.run is not None
    folder = next(path for path in entry.sources if path.is_dir())
    tree = parse(entry.run.config, str(folder / "config.yaml"))
    found: dict[str, str] = {}

    def visit(value: Any, name: str) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                visit(inner, f"{name}.{key}" if name else str(key))
        elif name:
            found[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    visit(tree.plain() if tree is not None else {}, "")
    return found


def _title(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"Comparison of {shown}"


def _table(entries: Sequence[Entry], chosen: Sequence[Column]) -> dict[str, Any]:
    """Headings over several columns, the columns, and (number, name, values) of the rows that have any of them."""
    rows = [(number, entry.name, [column.value(entry) for column in chosen]) for number, entry in enumerate(entries)]
    return {
        "groups": headings(chosen),
        "labels": [column.label for column in chosen],
        "rows": [(number, name, values) for number, name, values in rows if any(values)],
        "unit": "In %" + (OWN_UNIT if any_figure(entries, chosen) else ""),
        "impostors": any(value is not None and value.impostors is not None for *_, values in rows for value in values),
        "intervals": any(value is not None and value.interval for *_, values in rows for value in values),
    }


def _test(entries: Sequence[Entry], test: Test, chosen: Sequence[Column]) -> dict[str, Any]:
    """What the page shows of one test: table, switches, plots."""
    results = [
        (number, entry.name, entry.results[test]) for number, entry in enumerate(entries) if test in entry.results
    ]
    switches: dict[str, list[str]] = {}
    for _, name, result in results:
        switches.setdefault(switch_text(result.switches) or "no switches given", []).append(name)
    rocs = [(name, number, one.curves["roc"]) for number, name, one in results if "roc" in one.curves]
    cmcs = [(name, number, one.curves["cmc"]) for number, name, one in results if "cmc" in one.curves]
    scores = [(name, number, one.histogram) for number, name, one in results if one.histogram is not None]
    protocol, dataset = test
    figures = []
    if rocs:
        impostors = [sum(one.histogram.impostor) for *_, one in results if one.histogram is not None]
        caption = "ROC over a logarithmic FPR; the axis of the TPR starts just below the lowest curve."
        if impostors:
            caption += f" The shaded part is decided by fewer than {FEW} impostor scores."
        few = FEW / max(min(impostors), 1) if impostors else 0.0
        figures.append((plots.roc_overlay(f"{dataset}: ROC", rocs, few), caption))
    if cmcs:
        figures.append((plots.cmc_overlay(f"{dataset}: CMC", cmcs), "Share of probes found among the first ranks."))
    figures += _interval_figures(entries, dataset, chosen)
    if scores:
        drawn = plots.score_panels(f"{dataset}: scores", scores)
        figures.append((drawn, "Scores: same person in colour, different people as an outline."))
    return {
        "dataset": dataset,
        "protocol": protocol,
        "table": _table(entries, chosen),
        "switches": list(switches.items()),
        "differences": [one for one in differences(entries) if one.test == test],
        "figures": figures,
    }


def _interval_figures(entries: Sequence[Entry], dataset: str, chosen: Sequence[Column]) -> list[tuple[str, str]]:
    """The rate with intervals that says most: the TPR at the lowest FPR that enough impostor scores decide, or else."""
    found: list[tuple[Column, list[tuple[int, str, Value]]]] = []
    for column in chosen:
        several = [(number, entry.name, column.value(entry)) for number, entry in enumerate(entries)]
        known = [(number, name, value) for number, name, value in several if value is not None]
        if any(value.interval for *_, value in known) and not any(value.few for *_, value in known):
            found.append((column, known))
    if not found:
        return []
    column, known = found[-1]
    rows = [(name, number, value.rate, value.interval) for number, name, value in known]
    caption = (
        f"{column.label} with 95 % intervals of each row alone. Models are judged on the same people, so a difference "
        "can be sure although intervals overlap."
    )
    return [(plots.interval_plot(f"{dataset}: {column.label}", rows), caption)]


def _training(entries: Sequence[Entry]) -> list[str]:
    """Loss and verification accuracy over the steps, a line for each run."""
    runs = [(number, entry.name, entry.run) for number, entry in enumerate(entries) if entry.run is not None]
    drawn = []
    lines = [(name, number, *_series(run.train, lambda line: line.get("loss"))) for number, name, run in runs]
    if any(steps for _, _, steps, _ in lines):
        drawn.append(plots.steps_overlay("Training loss", "loss", [line for line in lines if line[2]]))
    for dataset in dict.fromkeys(one for *_, run in runs for one in run.verifications):
        lines = [
            (name, number, *_series(run.verifications.get(dataset, []), lambda line: line.get("accuracy"), 100))
            for number, name, run in runs
        ]
        if any(steps for _, _, steps, _ in lines):
            title = f"{dataset}: verification accuracy"
            drawn.append(plots.steps_overlay(title, "accuracy %", [line for line in lines if line[2]]))
    return drawn


def _series(
    lines: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], Any], factor: float = 1.0
) -> tuple[list[int], list[float]]:
    """Steps and values of the log lines that have a number."""
    found = [(int(line["step"]), factor * value(line)) for line in lines if isinstance(value(line), (int, float))]
    return [step for step, _ in found], [number for _, number in found]
