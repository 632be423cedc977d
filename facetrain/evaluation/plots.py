"""Plots of a report as inline SVG, drawn by matplotlib; their colours are the page's, so they follow light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.evaluation.inline_svg import BAND as _BAND
from facetrain.evaluation.inline_svg import SERIES as _SERIES
from facetrain.evaluation.inline_svg import TEXT as _TEXT
from facetrain.evaluation.inline_svg import averaged as _averaged
from facetrain.evaluation.inline_svg import figure as _figure
from facetrain.evaluation.inline_svg import svg as _svg
from facetrain.evaluation.pairs import Verification
from facetrain.evaluation.scores import FEW, fpr_text, roc

_ROOM = 1.3  # height of a histogram's axes over what is drawn: the legend's two lines stand above it


def roc_plot(results: Sequence[tuple[str, Verification]]) -> str:
    """ROC curves over a logarithmic FPR; grey where every set has fewer than ``FEW`` impostor pairs to decide."""
    figure, axes = _figure(5.6, 3.2)
    impostors = max(int((~result.same).sum()) for _, result in results)
    lowest = min(0.1, 10.0 ** np.floor(np.log10(1 / impostors)))
    for number, (name, result) in enumerate(results):
        curve = roc(result.scores, result.same)
        x, y = _thinned(curve.fpr, curve.tpr, lowest)
        axes.plot(x, y, color=_colour(number), label=name, linewidth=1.6, drawstyle="steps-post", clip_on=True)
    if FEW / impostors > lowest:
        axes.axvspan(lowest, min(1, FEW / impostors), color=_BAND, linewidth=0)
    axes.set_xscale("log")
    ticks = [10.0**power for power in range(round(np.log10(lowest)), 1)]
    axes.set_xticks(ticks, [fpr_text(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(_none())
    axes.set(xlim=(lowest, 1), ylim=(0, 1.005), xlabel="false positive rate", ylabel="true positive rate")
    axes.legend(loc="lower right", frameon=False)
    return _svg(figure, "roc")


def histogram(name: str, result: Verification, decision: tuple[str, float]) -> str:
    """Shares of same-person and different-person pairs over the score, with the threshold that is ``decision``."""
    figure, axes = _figure(5.6, 3.2)
    bins = np.linspace(result.scores.min(), result.scores.max(), 51)
    for number, (label, chosen) in enumerate((("same person", result.same), ("different people", ~result.same))):
        shares = np.histogram(result.scores[chosen], bins)[0] / max(1, chosen.sum())
        axes.stairs(100 * shares, bins, fill=True, color=_SERIES[number], alpha=0.35, linewidth=0)
        axes.stairs(100 * shares, bins, color=_SERIES[number], linewidth=1.4, label=label)
    what, threshold = decision
    if np.isfinite(threshold):
        axes.axvline(threshold, ymax=1 / _ROOM, color=_TEXT, linewidth=1, linestyle="--", label=what)
    axes.set(xlabel="cosine", ylabel="% of the pairs", title=name, ylim=(0, _ROOM * axes.get_ylim()[1]))
    axes.legend(frameon=False, loc="upper center", ncols=2)
    return _svg(figure, f"histogram {name}")


def curves(title: str, series: Sequence[tuple[str, ArrayLike, ArrayLike]], ylabel: str) -> str:
    """Lines over the training step: (label, steps, values) each; long ones are averaged over bins of steps."""
    figure, axes = _figure(5.6, 3.2)
    for number, (label, steps, values) in enumerate(series):
        x, y = _averaged(np.asarray(steps, np.float64), np.asarray(values, np.float64))
        marker = "o" if len(x) < 25 else ""
        axes.plot(x, y, color=_colour(number), label=label, linewidth=1.4, marker=marker, markersize=3)
    axes.set(xlabel="step", ylabel=ylabel, title=title)
    axes.set_xlim(left=0)
    if any(label for label, _, _ in series):
        axes.legend(frameon=False)
    return _svg(figure, title)


def _none() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _colour(number: int) -> str:
    return _SERIES[number % len(_SERIES)]


def _thinned(x: NDArray, y: NDArray, lowest: float) -> tuple[NDArray, NDArray]:
    """ROC points a reader can tell apart; the part below ``lowest`` is drawn at the left edge."""
    start = max(0, int(np.searchsorted(x, lowest, side="right")) - 1)
    x, y = np.maximum(x[start:], lowest), y[start:]
    column, row = np.floor(np.log10(x) * 300).astype(int), np.floor(y * 600).astype(int)
    keep = np.ones(len(x), bool)
    keep[1:-1] = (np.diff(column)[1:] != 0) | (np.diff(row)[1:] != 0) | (np.diff(column)[:-1] != 0)
    return x[keep], y[keep]
