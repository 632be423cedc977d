"""What a MegaFace run gives out: the table, features, and the devkit's files of results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from facetrain.atomic import result_file
from facetrain.data.progress import progress as progress_line
from facetrain.errors import InputError
from facetrain.evaluation.megaface.data import Loaded
from facetrain.evaluation.megaface.files import Features, feature_path, write_feature
from facetrain.evaluation.megaface.scores import Outcome, unit_features
from facetrain.evaluation.result import Result, switch_text, tpr_name
from facetrain.evaluation.scores import FEW
from facetrain.evaluation.search_blocks import BLOCK

if TYPE_CHECKING:
    from rich.table import Table

Layout = Literal["devkit", "npy"]
_SHOWN_FILES = 5000  # feature files from which on writing them shows how far it is


def save_features(folder: Path, loaded: Loaded, algo: str, layout: Layout) -> None:
    """Write features of length 1 as ``folder/facescrub`` and ``folder/megaface``, in the devkit's layout or as .npy.

    Unreadable images get no file, and in a matrix a row of zeros.

    Raises:
        InputError: they cannot be written.
    """
    parts = (
        ("facescrub", loaded.probes, loaded.probe_paths, np.isin(np.arange(len(loaded.probes)), loaded.readable)),
        ("megaface", loaded.distractors, loaded.distractor_paths, ~loaded.gone),
    )
    total = sum(len(paths) for _, _, paths, _ in parts)
    with progress_line("writing", total, "features", least=_SHOWN_FILES) as progress:
        for name, features, paths, there in parts:
            if layout == "npy":
                _save_matrix(folder / f"{name}.npy", features, there)
                continue
            made: set[Path] = set()
            for start in range(0, len(paths), BLOCK):
                which = np.flatnonzero(there[start : start + BLOCK]) + start
                for i, row in zip(which.tolist(), unit_features(features, which), strict=True):
                    path = feature_path(folder / name, paths[i], algo)
                    try:
                        if path.parent not in made:
                            path.parent.mkdir(parents=True, exist_ok=True)
                            made.add(path.parent)
                        write_feature(path, row)
                    except OSError as error:
                        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
                progress(min(BLOCK, len(paths) - start))


def _save_matrix(path: Path, features: Features, there: NDArray[np.bool_]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(there), features.dim)}
    with result_file(path) as temporary, temporary.open("wb") as file:
        npy.write_array_header_1_0(file, header)
        for start in range(0, len(there), BLOCK):
            part = there[start : start + BLOCK]
            rows = np.zeros((len(part), features.dim), "<f4")
            if part.any():
                rows[part] = unit_features(features, np.flatnonzero(part) + start)
            file.write(rows.tobytes())


def write_devkit_result(folder: Path, outcome: Outcome, algo: str, number: int) -> Path:
    """One of the devkit's files of results: CMC (index 0 is rank-1) and ROC, each [x, y].

    Raises:
        InputError: it cannot be written.
    """
    path = folder / f"cmc_facescrub_megaface_{algo}_{outcome.size}_{number}.json"
    places, rates = outcome.cmc()
    tree = {"cmc": [places.tolist(), rates.tolist()], "roc": [list(outcome.roc.x), list(outcome.roc.y)]}
    with result_file(path) as temporary:
        temporary.write_text(json.dumps(tree) + "\n", encoding="utf-8")
    return path


def megaface_table(results: Sequence[Result]) -> tuple[Table, str]:
    """The console's table, a row for each number of distractors, and what is to be said below it."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    last = results[-1]
    model = f"{last.model_name} ({last.model[:16]})" if last.model else last.model_name
    remarks = f"model {model}; {switch_text(last.switches)}; {last.seconds:.1f} s\n"
    remarks += "rates in %; in round brackets: the impostor pairs accepted there"
    if any(cell.few for one in results for cell in one.cells):
        remarks += f"; * decided by fewer than {FEW} of them"
    remarks += "; in square brackets: 95 % interval over people"
    if last.unreadable:
        remarks += f"\n{last.unreadable:,} of {last.images:,} images UNREADABLE"
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("distractors", *last.metrics, *(tpr_name(cell.fpr) for cell in last.cells)):
        table.add_column(name, justify="right", no_wrap=True)
    for one in results:
        rates = [f"{100 * rate:.2f}{_interval(one, name)}" for name, rate in one.metrics.items()]
        rates += [
            f"{100 * cell.tpr:.2f} ({cell.impostors:,}){'*' if cell.few else ' '}{_interval(one, tpr_name(cell.fpr))}"
            for cell in one.cells
        ]
        table.add_row(one.dataset.split()[1], *map(escape, rates))
    return table, remarks


def _interval(one: Result, name: str) -> str:
    if name not in one.intervals:
        return ""
    low, high = one.intervals[name]
    return f"\n[{100 * low:.2f}, {100 * high:.2f}]"
