"""How many images each class has, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.atomic import result_file


def plot_classes(counts: NDArray[np.int64], output: Path) -> Path:
    """Draw (C,) images per person as a long-tail curve and as a histogram into a PNG; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    curve, histogram = figure.subplots(1, 2)
    falling = np.sort(counts)[::-1]
    curve.fill_between(np.arange(1, falling.size + 1), falling, step="mid", alpha=0.4)
    curve.plot(np.arange(1, falling.size + 1), falling, drawstyle="steps-mid")
    curve.set(xlabel="people, most images first", ylabel="images")
    curve.set_title(f"{counts.sum():,} images, {counts.size:,} people")
    curve.set_xlim(0.5, max(falling.size, 1) + 0.5)
    largest = int(counts.max(initial=1))
    if largest > 50:
        curve.set_yscale("symlog", linthresh=1)
        curve.yaxis.set_major_formatter("{x:,.0f}")
        curve.set_ylim(0, largest * 1.5)
        edges: NDArray[Any] = np.unique(np.geomspace(1, largest + 1, 41).astype(int)) - 0.5
        histogram.set_xscale("log")
        histogram.xaxis.set_major_formatter("{x:,.0f}")
    else:
        edges = np.arange(largest + 2) - 0.5
    histogram.hist(counts, bins=edges)
    histogram.set(xlabel="images per person", ylabel="people", title="images per person")
    for axes in (curve, histogram):
        axes.grid(alpha=0.3)
    with result_file(output) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return output
