"""A study's differences to the baselines as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from study_file import Study
from study_numbers import Numbers, against_baseline

from facetrain.atomic import result_file


def plot(study: Study, numbers: Numbers) -> list[Path]:
    """Differences with their intervals, a panel for each setting, the rates side by side, methods by colour.

    Returns:
        The files; none where no rate of two methods is known.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = [column for column in numbers.columns if column.unit == "%" and column.evaluation != "leap"]
    found = {
        (setting, method, place): difference
        for setting in study.settings
        for method in study.baselines
        for place, column in enumerate(rates)
        if (difference := against_baseline(study, numbers.values, setting, method, column))
    }
    if not found:
        return []
    settings = [setting for setting in study.settings if any(key[0] == setting for key in found)]
    methods = [method for method in study.baselines if any(key[1] == method for key in found)]
    colors = pyplot.get_cmap("tab10" if len(methods) <= 10 else "tab20").colors  # type: ignore[attr-defined]
    width = min(1 + 0.9 * len(rates) * len(settings), 40)
    figure, panels = pyplot.subplots(
        1, len(settings), figsize=(width, 4.5), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, setting in zip(panels[0], settings, strict=True):
        for number, method in enumerate(methods):
            shift = (number - (len(methods) - 1) / 2) * 0.7 / len(methods)
            there = {place + shift: one for (a, b, place), one in found.items() if (a, b) == (setting, method)}
            if there:
                panel.errorbar(
                    list(there),
                    [one.mean for one in there.values()],
                    [0.0 if math.isnan(one.high) else one.high - one.mean for one in there.values()],
                    fmt="o",
                    markersize=4,
                    capsize=2,
                    label=f"{study.methods[method]} - {study.methods[study.baselines[method]]}",
                    color=colors[number % len(colors)],
                )
        panel.axhline(0, color="0.5", linewidth=0.8)
        panel.set_title(study.settings[setting], fontsize=10)
        panel.set_xlim(-0.5, len(rates) - 0.5)
        panel.set_xticks(range(len(rates)), [column.title for column in rates], rotation=35, ha="right", fontsize=8)
    panels[0][0].set_ylabel("difference to the baseline, points of %")
    handles: dict[str, Any] = {}
    for panel in panels[0]:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    panels[0][-1].legend(handles.values(), handles.keys(), fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    files = [study.out / f"differences.{suffix}" for suffix in ("svg", "png")]
    for file in files:
        with result_file(file) as growing:
            figure.savefig(growing, format=file.suffix[1:], dpi=120)
    pyplot.close(figure)
    return files
