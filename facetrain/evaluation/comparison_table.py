"""Results side by side: columns, values, what makes them not comparable; as Markdown, CSV, JSON and LaTeX."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from facetrain.evaluation.comparison_entries import Entry, Test
from facetrain.evaluation.result import Result, switch_text, tpr_name
from facetrain.evaluation.scores import FEW

Format = Literal["markdown", "csv", "json", "latex"]
OWN_UNIT = ", other numbers in the unit that ends their name"
"""What a table's remark on % adds where it has figures."""


@dataclass(frozen=True)
class Value:
    """One rate with what is known of its spread; ``impostors`` decide it where it is a TPR at a FPR.

    Or a figure, a number that is no rate: see :attr:`facetrain.evaluation.result.Result.figures`.
    """

    rate: float
    std: float | None = None
    interval: tuple[float, float] | None = None
    impostors: int | None = None
    figure: bool = False

    def __str__(self) -> str:
        return figure_text(self.rate) if self.figure else percent(self.rate)

    @property
    def few(self) -> bool:
        """Whether fewer than ``FEW`` impostor scores decided it."""
        return self.impostors is not None and self.impostors < FEW


@dataclass(frozen=True)
class Column:
    """One rate or figure of one test; ``group`` is the heading over all columns of a test, ``label`` its own."""

    test: Test
    rate: str
    group: str
    label: str

    def value(self, entry: Entry) -> Value | None:
        """What a row has to say; None where it has no such result."""
        result = entry.results.get(self.test)
        if result is None:
            return None
        if self.rate in result.metrics:
            std = result.metrics.get(f"{self.rate}_std")
            return Value(result.metrics[self.rate], std, result.intervals.get(self.rate))
        for cell in result.cells:
            if tpr_name(cell.fpr) == self.rate:
                return Value(cell.tpr, None, result.intervals.get(self.rate), cell.impostors)
        if self.rate in result.figures:
            return Value(result.figures[self.rate], figure=True)
        return None


@dataclass(frozen=True)
class Difference:
    """A switch in which the results of one column differ, so that they cannot be compared: value -> rows."""

    test: Test
    switch: str
    values: dict[str, list[str]]

    def __str__(self) -> str:
        found = "; ".join(f"{value} ({', '.join(names)})" for value, names in self.values.items())
        return f"NOT comparable on {self.test[1]} ({self.test[0]}): {self.switch} differs: {found}"


def every_test(entries: Sequence[Entry]) -> list[Test]:
    """The tests that any row has a result of, in the order of their first."""
    return list(dict.fromkeys(test for entry in entries for test in entry.results))


def columns(entries: Sequence[Entry]) -> list[Column]:
    """Every number of every test: metrics as they come, TPRs from the highest FPR to the lowest, then its figures."""
    datasets = [dataset for _, dataset in every_test(entries)]
    found = []
    for test in every_test(entries):
        results = [entry.results[test] for entry in entries if test in entry.results]
        protocol, dataset = test
        group = dataset if datasets.count(dataset) == 1 else f"{dataset} ({protocol})"
        found += [Column(test, rate, group, rate) for rate in _rates(results)]
    return found


def table_6(entries: Sequence[Entry]) -> list[Column]:
    """The columns of LEAP's Table 6 (LFW, MegaFace, IJB-C at 1e-3, 1e-4, 1e-5), those that any row has.

    Of several tests on LFW the .bin's is taken, of several on MegaFace the one with the most distractors.
    """
    every = every_test(entries)
    lfw = sorted((test for test in every if _is(test, "lfw", r"lfw\b.*")), key=lambda test: len(test[1]))
    megaface = sorted((test for test in every if _is(test, "megaface", ".*")), key=lambda test: -_number(test[1]))
    ijbc = [test for test in every if _is(test, "ijb-1:1", "ijb-?c")]
    found = [Column(test, "accuracy", "LFW", "accuracy") for test in lfw[:1]]
    for test in megaface[:1]:
        full = _number(test[1]) in (0, 1_000_000)
        found.append(Column(test, "rank-1", "MegaFace" if full else test[1], "Rank-1"))
    for test in ijbc[:1]:
        found += [Column(test, f"TPR@{fpr}", "IJB-C (TPR@FPR)", fpr) for fpr in ("1e-3", "1e-4", "1e-5")]
    return [column for column in found if any(column.value(entry) is not None for entry in entries)]


def differences(entries: Sequence[Entry]) -> list[Difference]:
    """The switches in which results of one test differ; one that a result does not name counts as another value."""
    found = []
    for test in every_test(entries):
        results = {entry.name: entry.results[test].switches for entry in entries if test in entry.results}
        for switch in dict.fromkeys(name for switches in results.values() for name in switches):
            values: dict[str, list[str]] = {}
            for name, switches in results.items():
                value = switch_text({"": switches[switch]}).strip() if switch in switches else "not said"
                values.setdefault(value, []).append(name)
            if len(values) > 1:
                found.append(Difference(test, switch, values))
    return found


def headings(chosen: Sequence[Column]) -> list[tuple[str, int]]:
    """The headings over neighbouring columns of one group, and over how many columns each stands."""
    return [(group, len(list(under))) for group, under in itertools.groupby(column.group for column in chosen)]


def render(entries: Sequence[Entry], chosen: Sequence[Column], format: Format) -> str:
    """The table as text that ends with a newline; rates in % in Markdown and LaTeX, 0..1 in CSV and JSON.

    Figures are in their own unit, which ends their name.
    """
    writer = {"markdown": _markdown, "csv": _csv, "json": _json, "latex": _latex}[format]
    return writer(entries, chosen)


def any_figure(entries: Sequence[Entry], chosen: Sequence[Column]) -> bool:
    """Whether a table holds numbers that are no rates."""
    values = (column.value(entry) for entry in entries for column in chosen)
    return any(value is not None and value.figure for value in values)


def percent(rate: float) -> str:
    """A rate as the paper writes it: ``98.73``."""
    return f"{100 * rate:.2f}"


def figure_text(value: float) -> str:
    """A number that is no rate: ``0.635``, ``1,500``; what is not 0 is never shown as 0."""
    return f"{value:,.0f}" if value == int(value) else f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.2g}"


def _rates(results: Sequence[Result]) -> list[str]:
    metrics = dict.fromkeys(name for one in results for name in one.metrics if not name.endswith("_std"))
    fprs = sorted({cell.fpr for one in results for cell in one.cells}, reverse=True)
    figures = dict.fromkeys(name for one in results for name in one.figures)
    return [*metrics, *map(tpr_name, fprs), *figures]


def _is(test: Test, protocol: str, dataset: str) -> bool:
    return test[0] == protocol and re.fullmatch(dataset, test[1], re.IGNORECASE) is not None


def _number(text: str) -> int:
    """The number in a data set's name, ``MegaFace, 1,000,000 distractors``; 0: there is none."""
    return int("0" + "".join(re.findall(r"\d", text)))


def _markdown(entries: Sequence[Entry], chosen: Sequence[Column]) -> str:
    lines = [["", *(f"{column.group} {column.label}" for column in chosen)]]
    for entry in entries:
        lines.append([entry.name, *(_words(column.value(entry)) for column in chosen)])
    rows = ["| " + " | ".join(map(_in_markdown, line)) + " |" for line in lines]
    rows.insert(1, "|" + "|".join([" :-- ", *[" --: "] * len(chosen)]) + "|")
    remarks = [f"**{_in_markdown(str(one))}**" for one in differences(entries)]
    unit = OWN_UNIT if any_figure(entries, chosen) else ""
    remarks.append(
        f"Rates in %{unit}; ± is the spread over folds; in square brackets a 95 % interval; in round brackets "
        f"how many impostor scores decide the cell, * marks fewer than {FEW}."
    )
    for test in dict.fromkeys(column.test for column in chosen):
        switches = dict.fromkeys(
            switch_text(entry.results[test].switches) for entry in entries if test in entry.results
        )
        remarks.append(
            _in_markdown(f"{test[1]} ({test[0]}): " + " / ".join(text or "no switches" for text in switches))
        )
    return "\n".join([*rows, "", "\n\n".join(remarks)]) + "\n"


def _words(value: Value | None) -> str:
    if value is None:
        return "–"
    text = str(value) + (f" ± {percent(value.std)}" if value.std is not None else "")
    if value.impostors is not None:
        text += f"{'*' if value.few else ''} ({value.impostors})"
    if value.interval is not None:
        text += f" [{percent(value.interval[0])}, {percent(value.interval[1])}]"
    return text


def _in_markdown(text: str) -> str:
    return re.sub(r"([\\|<`])", r"\\\1", " ".join(text.split()))


_PARTS = ("", " std", " low", " high", " impostors")


def _csv(entries: Sequence[Entry], chosen: Sequence[Column]) -> str:
    kept = []  # (column, part) of which any row has something
    for column in chosen:
        known = [_parts(column.value(entry)) for entry in entries]
        kept += [(column, i) for i in range(len(_PARTS)) if any(parts[i] != "" for parts in known)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "model", *(f"{column.group} {column.label}{_PARTS[i]}" for column, i in kept)])
    for entry in entries:
        writer.writerow([entry.name, " ".join(entry.models), *(_parts(column.value(entry))[i] for column, i in kept)])
    return text.getvalue()


def _parts(value: Value | None) -> tuple[float | int | str, ...]:
    """As ``_PARTS`` names them; "" for what is not known."""
    if value is None:
        return ("",) * len(_PARTS)
    parts = (value.rate, value.std, *(value.interval or (None, None)), value.impostors)
    return tuple("" if part is None else part for part in parts)


def _json(entries: Sequence[Entry], chosen: Sequence[Column]) -> str:
    rows = []
    for entry in entries:
        values = []
        for column in chosen:
            value = column.value(entry)
            if value is not None:
                protocol, dataset = column.test
                about: dict[str, object] = {"protocol": protocol, "dataset": dataset, "metric": column.rate}
                if value.figure:
                    values.append(about | {"figure": value.rate})
                    continue
                numbers = {"rate": value.rate, "std": value.std, "interval": value.interval}
                values.append(about | numbers | {"impostors": value.impostors, "few": value.few})
        switches = {f"{dataset} ({protocol})": one.switches for (protocol, dataset), one in entry.results.items()}
        rows.append({"name": entry.name, "models": entry.models, "values": values, "switches": switches})
    return json.dumps({"not_comparable": [str(one) for one in differences(entries)], "rows": rows}, indent=1) + "\n"


def _latex(entries: Sequence[Entry], chosen: Sequence[Column]) -> str:
    """A tabular for the booktabs package."""
    groups = headings(chosen)
    first = [f"\\multicolumn{{{width}}}{{c}}{{{_in_latex(group)}}}" for group, width in groups]
    rules, at = [], 2
    for _, width in groups:
        rules.append(f"\\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    lines = [f"% {' '.join(str(one).split())}" for one in differences(entries)]
    lines += [f"\\begin{{tabular}}{{l{'r' * len(chosen)}}}", "\\toprule", " & ".join(["", *first]) + r" \\"]
    lines += ["".join(rules), " & ".join(["Method", *(_in_latex(column.label) for column in chosen)]) + r" \\"]
    lines.append("\\midrule")
    for entry in entries:
        cells = [_number_in_latex(column.value(entry)) for column in chosen]
        lines.append(" & ".join([_in_latex(entry.name), *cells]) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    if any(value is not None and value.few for entry in entries for value in (c.value(entry) for c in chosen)):
        lines.append(f"% $^{{*}}$ decided by fewer than {FEW} impostor scores")
    return "\n".join(lines) + "\n"


def _number_in_latex(value: Value | None) -> str:
    if value is None:
        return "--"
    return str(value) + ("$^{*}$" if value.few else "")


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # at the start of a row it would be an option of the row before
}


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
