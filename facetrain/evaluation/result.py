"""What a protocol found about a model, with all that is needed to read it: switches, intervals, curves, images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.atomic import result_file
from facetrain.data.files import read_file
from facetrain.errors import InputError
from facetrain.evaluation.scores import FEW, Cell, fpr_text
from facetrain.strictyaml import one_line

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "facetrain results 1"
"""First key of a result file; another number would be another layout."""
POINTS = 1000
_MOST_BYTES = 1 << 26


@dataclass(frozen=True)
class Curve:
    """A line to draw: ``roc`` (x FPR, y TPR) or ``cmc`` (x rank, y rate), x never falling."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        _expect(len(self.x) == len(self.y) and len(self.x) > 0, "a curve needs as many x as y, at least one")
        _expect(bool(np.isfinite([self.x, self.y]).all()), "a curve holds a number that is not finite")
        _expect(bool((np.diff(self.x) >= 0).all()), "a curve's x must never fall")


@dataclass(frozen=True)
class Histogram:
    """Counts of genuine and impostor scores, (B,) each, between ``edges`` (B + 1,)."""

    edges: tuple[float, ...]
    genuine: tuple[int, ...]
    impostor: tuple[int, ...]

    def __post_init__(self) -> None:
        _expect(
            len(self.edges) - 1 == len(self.genuine) == len(self.impostor) > 0,
            "a histogram of B bins needs B + 1 edges, B genuine and B impostor counts",
        )
        _expect(bool(np.isfinite(self.edges).all() and (np.diff(self.edges) > 0).all()), "edges must rise")
        _expect(min(*self.genuine, *self.impostor) >= 0, "a count is negative")


@dataclass(frozen=True)
class Result:
    """One protocol on one data set and one model.

    Rates (``metrics``, ``cells``, ``intervals``) lie in 0..1. ``intervals`` holds 95 % intervals, from a bootstrap over
    subjects where the protocol says nothing else, under a metric's name or ``TPR@1e-3`` for a cell. ``switches`` say
    how and on what was judged, the same for every model; numbers that depend on the model and are no rates are
    ``figures``, finite, with their unit at the end of their name: ``angle mean (rad)``.
    """

    protocol: str
    dataset: str
    model: str
    """SHA-256 of the model; "" where it is not known."""
    model_name: str
    switches: dict[str, str | int | float | bool] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    histogram: Histogram | None = None
    images: int = 0
    unreadable: int = 0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            _expect(0 <= value <= 1, f"metrics: {name} = {value:g} is no rate from 0 to 1")
        for cell in self.cells:
            name = tpr_name(cell.fpr)
            _expect(0 < cell.fpr <= 1 and 0 <= cell.tpr <= 1, f"cells: {name} = {cell.tpr:g} is no rate from 0 to 1")
            _expect(not np.isnan(cell.threshold), f"cells: {name} has a threshold that is no number")
            _expect(cell.impostors >= 0, f"cells: {name} is decided by {cell.impostors} impostor scores")
        for name, (low, high) in self.intervals.items():
            _expect(0 <= low <= high <= 1, f"intervals: {name} = {low:g} to {high:g} is no interval of rates")
        for name, value in self.figures.items():
            _expect(bool(np.isfinite(value)), f"figures: {name} = {value:g} is no finite number")
        _expect(0 <= self.unreadable <= self.images, f"{self.unreadable} of {self.images} images cannot be unreadable")

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all; :func:`read_result` reads it.

        Raises:
            InputError: it cannot be written.
        """
        save_results([self], path)


def tpr_name(fpr: float) -> str:
    """How a cell is called in ``intervals`` and in tables: ``TPR@1e-3``."""
    return f"TPR@{fpr_text(fpr)}"


def thinned(fpr: ArrayLike, tpr: ArrayLike, points: int = POINTS) -> Curve:
    """At most ``points`` of a ROC's points: first, last, and others spread evenly over log FPR and over TPR.

    Drawn as steps the line lies on or below the ROC, never above it.

    Args:
        fpr: (P,) never falling.
        tpr: (P,) never falling.
        points: at least 4.

    Raises:
        InputError: the two differ in length, are empty, or hold a number that is not finite.
    """
    x, y = np.asarray(fpr, np.float64), np.asarray(tpr, np.float64)
    if len(x) > points:
        above = x[x > 0]
        rates = np.geomspace(above[0], x[-1], points // 2) if len(above) else x[-1:]
        heights = np.linspace(y[0], y[-1], points - points // 2 - 2)
        last_at_rate = np.searchsorted(x, rates, side="right") - 1  # of points above each other the highest
        kept = np.unique(
            np.concatenate(
                ([0, len(x) - 1], last_at_rate.clip(min=0), np.searchsorted(y, heights).clip(max=len(x) - 1))
            )
        )
        x, y = x[kept], y[kept]
    return Curve(tuple(x.tolist()), tuple(y.tolist()))


def score_histogram(genuine: ArrayLike, impostor: ArrayLike, bins: int = 60) -> Histogram:
    """Counts of both kinds of scores in ``bins`` equal bins over the range of both."""
    both: list[NDArray] = [np.asarray(genuine, np.float64), np.asarray(impostor, np.float64)]
    edges = np.histogram_bin_edges(
        np.array([value for part in both if len(part) for value in (part.min(), part.max())]), bins
    )
    same, other = (np.histogram(part, edges)[0] for part in both)
    return Histogram(tuple(edges.tolist()), tuple(same.tolist()), tuple(other.tolist()))


def save_results(results: Sequence[Result], path: Path) -> None:
    """Write several results as one JSON file, whole or not at all; :func:`read_results` reads it.

    Raises:
        InputError: it cannot be written.
    """
    text = json.dumps({"format": FORMAT, "results": [_record(one) for one in results]}, indent=1, default=_plain)
    with result_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_results(path: Path) -> list[Result]:
    """The results of a file that :func:`save_results` or :meth:`Result.save` wrote, at least one.

    Raises:
        InputError: one line: the file is missing, damaged, no result file, or a value in it is not what it must be.
    """
    from pydantic import TypeAdapter, ValidationError

    tree = _tree(path)
    try:
        found = TypeAdapter(list[Result]).validate_json(json.dumps(tree["results"]), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in ("results", *first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise _unreadable(path, f"{where}: {reason[:1].lower()}{reason[1:]}") from None
    if not found:
        raise _unreadable(path, "it holds no result")
    return found


def read_result(path: Path) -> Result:
    """The one result of a file; see :func:`read_results`.

    Raises:
        InputError: as there; or the file holds several.
    """
    found = read_results(path)
    if len(found) > 1:
        raise _unreadable(path, f"it holds {len(found)} results where one is expected")
    return found[0]


def result_table(results: Sequence[Result]) -> tuple[Table, str]:
    """The console's table, a row for each result, rates in %, and what is to be said below it."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    metrics = list(dict.fromkeys(name for one in results for name in one.metrics if not name.endswith("_std")))
    fprs = sorted({cell.fpr for one in results for cell in one.cells}, reverse=True)
    told: dict[str, list[str]] = {}
    for one in results:
        told.setdefault(_caption(one), []).append(one.dataset)
    remarks = ["rates in %"]
    if fprs:
        remarks.append("in round brackets: the impostor scores accepted there")
    if any(cell.few for one in results for cell in one.cells):
        remarks.append(f"* decided by fewer than {FEW} of them")
    if any(one.intervals for one in results):
        remarks.append("in square brackets: 95 % interval over subjects")
    about = [f"{', '.join(names)}, {text}" for text, names in told.items()]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("data set", overflow="fold")
    for name in (*metrics, *map(tpr_name, fprs)):
        table.add_column(escape(name), justify="right", no_wrap=True)
    for one in results:
        at = {cell.fpr: cell for cell in one.cells}
        row = [_metric_text(one, name) for name in metrics]
        row += [_cell_text(one, at[fpr]) if fpr in at else "–" for fpr in fprs]
        table.add_row(escape(one.dataset), *map(escape, row))
    return table, "\n".join([*about, "; ".join(remarks)])


def switch_text(switches: dict[str, str | int | float | bool]) -> str:
    """Switches in one line: ``flip yes, FPR rule strict``."""
    words = {True: "yes", False: "no"}
    return ", ".join(f"{name} {words[value] if isinstance(value, bool) else value}" for name, value in switches.items())


def interval_text(one: Result, name: str) -> str:
    """The interval of a metric or cell as the table's second line, in %; "" where there is none."""
    low, high = one.intervals.get(name, (0, 0))
    return f"\n[{100 * low:.2f}, {100 * high:.2f}]" if name in one.intervals else ""


def _caption(one: Result) -> str:
    model = f"{one.model_name} ({one.model[:16]})" if one.model else one.model_name
    images = f"{one.images:,} images" + (f", {one.unreadable:,} UNREADABLE" if one.unreadable else "")
    switches = f"; {switch_text(one.switches)}" if one.switches else ""
    figures = "".join(f"; {name} {value:g}" for name, value in one.figures.items())
    return f"{one.protocol}: model {model}; {images}{switches}{figures}; {one.seconds:.1f} s"


def _metric_text(one: Result, name: str) -> str:
    if name not in one.metrics:
        return "–"
    spread = one.metrics.get(f"{name}_std")
    text = f"{100 * one.metrics[name]:.2f}" + (f" ± {100 * spread:.2f}" if spread is not None else "")
    return text + interval_text(one, name)


def _cell_text(one: Result, cell: Cell) -> str:
    return f"{100 * cell.tpr:.2f} ({cell.impostors}){'*' if cell.few else ' '}" + interval_text(one, tpr_name(cell.fpr))


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InputError(otherwise)


def _record(one: Result) -> dict[str, Any]:
    """As JSON types; what is long comes last, a threshold that nobody reaches is null (JSON knows no infinity)."""
    record = asdict(one)
    for cell in record["cells"]:
        if not np.isfinite(cell["threshold"]):
            cell["threshold"] = None
    return record | {name: record.pop(name) for name in ("curves", "histogram")}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a result cannot hold a {type(value).__name__}")


def _tree(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise _unreadable(path, f"it is larger than {_MOST_BYTES >> 20} MiB")
        tree = json.loads(read_file(path).decode())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise _unreadable(path, f"it is not JSON ({error})") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT or "results" not in tree:
        raise _unreadable(path, f'it lacks "format": "{FORMAT}"')
    for one in tree["results"] if isinstance(tree["results"], list) else []:
        cells = one.get("cells") if isinstance(one, dict) else None
        for cell in cells if isinstance(cells, list) else []:
            if isinstance(cell, dict) and cell.get("threshold", 0) is None:
                cell["threshold"] = float("inf")
    return tree


def _unreadable(path: Path, why: str) -> InputError:
    return InputError(one_line(f"{path} is not a result of facetrain eval: {why}"))
