"""What a study's cells found: means over seeds, and differences to a baseline paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from study_cells import RADIANS, numbers
from study_file import Column, Study

LEVEL = 0.95
"""Of the intervals."""

Values = Mapping[tuple[str, str, Column], Mapping[int, float]]
"""(setting, method, column) -> seed -> number, in the column's unit."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds; its standard deviation (divisor n - 1) is NaN for one seed."""

    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class Difference:
    """A mean difference over seeds and its interval by Student's t, which is NaN for one seed."""

    mean: float
    low: float
    high: float
    count: int


def mean_of(values: Mapping[int, float]) -> Mean | None:
    """Mean and standard deviation over seeds; None where there is none."""
    found = list(values.values())
    if not found:
        return None
    return Mean(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else math.nan, len(found))


def paired(values: Mapping[int, float], baseline: Mapping[int, float], level: float = LEVEL) -> Difference | None:
    """``values`` minus ``baseline`` over the seeds that both have; None where they share none.

    Seeds differ by more than the effect, and a seed fixes initial weights and data order of both: the interval is of
    the mean of the differences, Student's t with n - 1 degrees of freedom.
    """
    seeds = sorted(values.keys() & baseline.keys())
    found = mean_of({seed: values[seed] - baseline[seed] for seed in seeds})
    if found is None:
        return None
    if found.count < 2:
        return Difference(found.mean, math.nan, math.nan, found.count)
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, found.count - 1)) * found.deviation / math.sqrt(found.count)
    return Difference(found.mean, found.mean - half, found.mean + half, found.count)


@dataclass(frozen=True)
class Numbers:
    """What is known of a study's cells."""

    columns: tuple[Column, ...]
    values: Values
    absent: tuple[str, ...]
    """A line for each column that no result has, though its evaluation is done."""


def collect(study: Study) -> Numbers:
    """Everything that is known of the study's cells, by the columns that it asks for.

    Raises:
        InputError: a cell was made with another recipe than the study's.
    """
    known = {(cell.setting, cell.method, cell.seed): numbers(cell) for cell in study.cells}
    columns = study.columns
    if not columns:
        keys = dict.fromkeys(key for found in known.values() for key in found if not key[2].endswith("_std"))
        columns = tuple(_column(*key) for key in sorted(keys, key=lambda key: key[0] == "leap"))
    values: dict[tuple[str, str, Column], dict[int, float]] = {}
    for (setting, method, seed), found in known.items():
        for column in columns:
            value = found.get((*_place(column), column.value))
            if value is not None:
                scaled = 100 * value if column.unit == "%" else value
                values.setdefault((setting, method, column), {})[seed] = scaled
    shown = {column for *_, column in values}
    absent = []
    for column in set(columns) - shown:
        there = sorted({key[2] for found in known.values() for key in found if key[:2] == _place(column)})
        if there:
            absent.append(f"{column.title}: no result has {column.value}; they have {', '.join(there)}")
    return Numbers(tuple(column for column in columns if column in shown), values, tuple(sorted(absent)))


def against_baseline(study: Study, values: Values, setting: str, method: str, column: Column) -> Difference | None:
    """A method minus its baseline, paired by seed; None where it has no baseline or they share no seed."""
    baseline = study.baselines.get(method, "")
    return paired(values.get((setting, method, column), {}), values.get((setting, baseline, column), {}))


def _place(column: Column) -> tuple[str, str | None]:
    return column.evaluation, column.part


def _column(evaluation: str, part: str | None, value: str) -> Column:
    angle = value.endswith(RADIANS) or "sigma" in value
    title = " ".join(word for word in (evaluation, part, value.removesuffix(RADIANS).rstrip()) if word)
    return Column(title, evaluation, part, value, "rad" if angle else "%", None)
