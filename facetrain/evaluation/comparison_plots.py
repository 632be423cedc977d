"""Plots of several models on one data set, in the style of :mod:`facetrain.evaluation.plots`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from facetrain.evaluation.inline_svg import BAND, LINE, SERIES, TEXT, averaged, figure, panels, svg
from facetrain.evaluation.result import Curve, Histogram
from facetrain.evaluation.scores import fpr_text

Style = dict[str, Any]
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
_LOWEST_FPR = 1e-7
_LONGEST = 36  # characters of a name in a plot


def style(number: int) -> Style:
    """Colour and dashes of row ``number``, the same in every plot; after six colours the dashes change."""
    return {"color": SERIES[number % len(SERIES)], "linestyle": _DASHES[number // len(SERIES) % len(_DASHES)]}


def roc_overlay(title: str, lines: Sequence[tuple[str, int, Curve]], few: float = 0.0) -> str:
    """ROC curves (row's name, its number, curve) over a logarithmic FPR, shaded below the rate ``few``.

    The TPR axis starts below the lowest curve.
    """
    made, axes = figure(5.6, 3.4)
    above = [x for _, _, curve in lines for x in curve.x if x > 0]
    lowest = max(_LOWEST_FPR, min(0.1, 10.0 ** math.floor(math.log10(min(above, default=0.1)))))
    bottom = 1.0
    for name, number, curve in lines:
        x, y = np.array(curve.x), np.array(curve.y)
        start = max(0, int(np.searchsorted(x, lowest, side="right")) - 1)
        x, y = np.maximum(x[start:], lowest), y[start:]
        bottom = min(bottom, float(y[0]))
        axes.plot(x, y, label=_words(name), linewidth=1.6, drawstyle="steps-post", **style(number))
    if few > lowest:
        axes.axvspan(lowest, min(1.0, few), color=BAND, linewidth=0)
    axes.set_xscale("log")
    ticks = [10.0**power for power in range(round(math.log10(lowest)), 1)]
    axes.set_xticks(ticks, [fpr_text(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlim=(lowest, 1), ylim=(max(0.0, bottom - 0.02), 1.003))
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title=_words(title))
    axes.legend(loc="lower right", frameon=False)
    return svg(made, f"roc {title}")


def cmc_overlay(title: str, lines: Sequence[tuple[str, int, Curve]]) -> str:
    """Share of probes whose person is among the first ranks: (row's name, its number, curve)."""
    made, axes = figure(5.6, 3.4)
    for name, number, curve in lines:
        axes.plot(
            curve.x,
            100 * np.array(curve.y),
            label=_words(name),
            linewidth=1.6,
            marker="o",
            markersize=3,
            **style(number),
        )
    last = max(curve.x[-1] for _, _, curve in lines)
    if last > 20:
        axes.set_xscale("log")
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick <= last]
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.minorticks_off()
    axes.set(xlabel="rank", ylabel="found among the first, %", title=_words(title))
    axes.legend(loc="lower right", frameon=False)
    return svg(made, f"cmc {title}")


def score_panels(title: str, rows: Sequence[tuple[str, int, Histogram]]) -> str:
    """Shares of genuine (filled) and impostor scores (outline), a panel for each row, over one axis of scores."""
    made, several = panels(len(rows), 5.6, 0.9 + 1.25 * len(rows))
    for axes, (name, number, held) in zip(several, rows, strict=True):
        genuine, impostor = (100 * np.array(counts) / max(1, sum(counts)) for counts in (held.genuine, held.impostor))
        axes.stairs(genuine, held.edges, fill=True, color=SERIES[number % len(SERIES)], alpha=0.45, linewidth=0)
        axes.stairs(genuine, held.edges, color=SERIES[number % len(SERIES)], linewidth=1.4)
        axes.stairs(impostor, held.edges, color=TEXT, linewidth=1.2)
        axes.set_title(_words(name), loc="left", color=TEXT, fontsize=9.5)
        axes.set(ylabel="%", ylim=(0, 1.05 * max(genuine.max(), impostor.max(), 1e-9)))
    several[-1].set_xlabel("score")
    return svg(made, f"scores {title}")


def steps_overlay(title: str, ylabel: str, lines: Sequence[tuple[str, int, ArrayLike, ArrayLike]]) -> str:
    """Lines over the training step: (row's name, its number, steps, values) each."""
    made, axes = figure(5.6, 3.4)
    for name, number, steps, values in lines:
        x, y = averaged(np.asarray(steps, np.float64), np.asarray(values, np.float64))
        marker = "o" if len(x) < 25 else ""
        axes.plot(x, y, label=_words(name), linewidth=1.4, marker=marker, markersize=3, **style(number))
    axes.set(xlabel="step", ylabel=ylabel, title=_words(title))
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    return svg(made, title)


def interval_plot(title: str, rows: Sequence[tuple[str, int, float, tuple[float, float] | None]]) -> str:
    """A rate of each row as a point with its 95 % interval: (row's name, its number, rate, interval)."""
    made, axes = figure(5.6, 0.9 + 0.42 * len(rows))
    for place, (_, number, rate, interval) in enumerate(rows):
        colour = SERIES[number % len(SERIES)]
        if interval is not None:
            axes.plot(100 * np.array(interval), (place, place), color=colour, linewidth=2.4, solid_capstyle="butt")
        axes.plot([100 * rate], [place], marker="o", markersize=6, color=colour, linestyle="")
        axes.axhline(place, color=LINE, linewidth=0.6, zorder=0)
    axes.set_yticks(range(len(rows)), [_words(name) for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="%", title=_words(title))
    return svg(made, f"intervals {title}")


def _words(text: str) -> str:
    """A user's text, short and literal: no formula between dollars, no ``_`` in front that hides it from legends."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}…{text[-(_LONGEST // 2 - 1) :]}"
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text
