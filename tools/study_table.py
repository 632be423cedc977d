"""A study's numbers beside the paper's, as Markdown and CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from study_file import Column, Study
from study_numbers import Difference, Mean, Numbers, Values, against_baseline, collect, mean_of
from study_plot import plot

from facetrain.atomic import result_file
from facetrain.preflight import changes
from facetrain.provenance import circumstances


def write_tables(study: Study) -> tuple[str, list[Path]]:
    """Write ``table6.md``, ``table6.csv``, ``cells.csv`` and the plot into the study's folder.

    Returns:
        The Markdown and the files.

    Raises:
        InputError: a file cannot be written, or cells of another recipe.
    """
    found = collect(study)
    text = markdown(study, found)
    files = [study.out / name for name in ("table6.md", "table6.csv", "cells.csv")]
    with result_file(files[0]) as growing:
        growing.write_text(text, encoding="utf-8")
    _write_csv(files[1], summary_rows(study, found.values))
    each = [
        {
            "setting": setting,
            "method": method,
            "seed": seed,
            "column": column.title,
            "unit": column.unit,
            "value": value,
        }
        for (setting, method, column), by_seed in found.values.items()
        for seed, value in sorted(by_seed.items())
    ]
    _write_csv(files[2], each)
    files += plot(study, found)
    return text, files


def markdown(study: Study, numbers: Numbers) -> str:
    """The tables as Markdown: means, differences to the baselines, what the methods change, circumstances."""
    parts = [f"# {study.path.stem}", "Mean and standard deviation over seeds; rates in %."]
    if study.paper:
        parts[1] += " In brackets the paper's number (one run)."
    shown, values = numbers.columns, numbers.values
    trained = {(setting, method, seed) for (setting, method, _), found in values.items() for seed in found}
    parts[1] += f" {len(trained)} of {len(study.cells)} cells have numbers."
    titles = [column.title + (", rad" if column.unit == "rad" else "") for column in shown]
    rows = []
    for setting, setting_title in study.settings.items():
        for method, title in study.methods.items():
            found = [mean_of(values.get((setting, method, column), {})) for column in shown]
            count = max((one.count for one in found if one), default=0)
            papers = [study.paper.get((setting, method, column.paper or "")) for column in shown]
            cells = [_mean_text(*each) for each in zip(found, shown, papers, strict=True)]
            if any(cells):
                rows.append([setting_title, title, str(count), *cells])
    parts.append(_table(["setting", "method", "seeds", *titles], rows))
    parts.append("## Difference to the baseline, paired by seed")
    parts.append("Mean and 95 % interval (Student's t); points of %, or rad; bold where it leaves out 0.")
    rows = []
    for setting, setting_title in study.settings.items():
        for method, baseline in study.baselines.items():
            name = f"{study.methods[method]} - {study.methods[baseline]}"
            pairs = [against_baseline(study, values, setting, method, column) for column in shown]
            count = max((one.count for one in pairs if one), default=0)
            cells = [
                _difference_text(one, column, _paper_difference(study, setting, method, column))
                for one, column in zip(pairs, shown, strict=True)
            ]
            if any(cells):
                rows.append([setting_title, name, str(count), *cells])
    parts.append(_table(["setting", "difference", "seeds", *titles], rows))
    parts += [f"Absent: {line}." for line in numbers.absent]
    parts.append("## What the methods change\n\n" + _changes(study))
    about = circumstances()
    lines = [f"- {key}: {about[key]}" for key in ("command", "date", "commit", "processor", "python", "torch")]
    return "\n\n".join([*parts, "## Made with", "\n".join(lines)]) + "\n"


def summary_rows(study: Study, values: Values) -> list[dict[str, object]]:
    """A row for each setting, method and column: mean, deviation, difference, interval, the paper's numbers."""
    rows: list[dict[str, object]] = []
    for (setting, method, column), by_seed in values.items():
        found, difference = mean_of(by_seed), against_baseline(study, values, setting, method, column)
        assert found is not None
        rows.append(
            {
                "setting": setting,
                "method": method,
                "column": column.title,
                "unit": column.unit,
                "seeds": found.count,
                "mean": found.mean,
                "deviation": found.deviation if found.count > 1 else "",
                "baseline": study.baselines.get(method, ""),
                "pairs": difference.count if difference else "",
                "difference": difference.mean if difference else "",
                "low": difference.low if difference and difference.count > 1 else "",
                "high": difference.high if difference and difference.count > 1 else "",
                "paper": _or_nothing(study.paper.get((setting, method, column.paper or ""))),
                "paper_difference": _or_nothing(_paper_difference(study, setting, method, column)),
            }
        )
    return rows


def _changes(study: Study) -> str:
    """Each method's recipe beside its baseline's, in the first setting."""
    first = next(iter(study.settings))
    recipes = {cell.method: cell.config for cell in study.cells if cell.setting == first}
    rows = []
    for method, baseline in study.baselines.items():
        before, now = (recipes[name].model_dump(mode="json", exclude={"output"}) for name in (baseline, method))
        said = ", ".join(f"{key}: {old} to {new}" for key, old, new in changes(before, now)) or "nothing"
        rows.append([study.methods[method], study.methods[baseline], said])
    return _table(["method", "baseline", "changes"], rows, 3)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """A Markdown table; all columns but the first ``left`` are set right."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _paper_difference(study: Study, setting: str, method: str, column: Column) -> float | None:
    mine, theirs = (
        study.paper.get((setting, name, column.paper or "")) for name in (method, study.baselines.get(method, ""))
    )
    return None if mine is None or theirs is None else mine - theirs


def _mean_text(found: Mean | None, column: Column, paper: float | None) -> str:
    digits = 2 if column.unit == "%" else 3
    text = "" if found is None else f"{found.mean:.{digits}f}"
    if found is not None and found.count > 1:
        text += f" ± {found.deviation:.{digits}f}"
    return text if paper is None else f"{text} [{paper:.2f}]".strip()


def _difference_text(found: Difference | None, column: Column, paper: float | None) -> str:
    digits = 2 if column.unit == "%" else 3
    text = "" if found is None else f"{found.mean:+.{digits}f}"
    if found is not None and found.count > 1:
        text += f" ({found.low:+.{digits}f} .. {found.high:+.{digits}f})"
        text = f"**{text}**" if found.low > 0 or found.high < 0 else text
    return text if paper is None else f"{text} [{paper:+.2f}]".strip()


def _or_nothing(value: float | None) -> object:
    return "" if value is None else round(value, 6)


def _write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with result_file(path) as growing, growing.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["setting", "method"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
