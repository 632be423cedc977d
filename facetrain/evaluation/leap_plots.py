"""Plots of class spreads, feature clouds and maps of people (LEAP), as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.evaluation.inline_svg import CARD, LINE, PEOPLE, SERIES, TEXT, averaged, figure, panels, svg
from facetrain.evaluation.rundir import DEGREES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 5.6
_SMALL = 8.5
_ROOM = 1.6  # height of a histogram's axes over what is drawn: the legend's two lines stand above it
_OVER_LINES: dict[str, Any] = {"facecolor": CARD, "edgecolor": "none", "framealpha": 0.8}
_ROWS = 14  # curves above each other at most


@dataclass(frozen=True, eq=False)
class Group:
    """Angles of some classes: ``head``, ``tail`` or another name, and the count in each degree, (180,) int64."""

    name: str
    counts: NDArray[np.int64]

    @property
    def style(self) -> dict[str, Any]:
        """Colour and dash of its lines."""
        number, dash = {"head": (0, "-"), "tail": (1, "--")}.get(self.name, (2, "-"))
        return {"color": SERIES[number], "linestyle": dash}

    @property
    def shares(self) -> NDArray[np.float64]:
        """Per cent of the angles in each degree."""
        return 100 * self.counts / max(1, self.counts.sum())

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation in degrees, to the width of a bin; NaN where there are no angles."""
        total = self.counts.sum()
        if not total:
            return np.nan, np.nan
        middle = np.arange(DEGREES) + 0.5
        mean = float((middle * self.counts).sum() / total)
        return mean, float(np.sqrt((np.square(middle - mean) * self.counts).sum() / total))


@dataclass(frozen=True, eq=False)
class Line:
    """A line over steps: values (n,), NaN where there are none, in series colour ``colour``."""

    label: str
    steps: ArrayLike
    values: ArrayLike
    colour: int
    dashed: bool = False


def spread_text(mean: float, deviation: float) -> str:
    """Mean and deviation of angles given in degrees, in degrees and radians."""
    return f"{mean:.1f}° ± {deviation:.1f}° ({np.deg2rad(mean):.3f} ± {np.deg2rad(deviation):.3f} rad)"


def histograms(rows: Sequence[tuple[str, Sequence[Group]]], salt: str) -> str:
    """Histograms of angles above each other on one axis: (title, groups) each, with mean and standard deviation."""
    drawn, several = panels(len(rows), _WIDTH, 0.75 + 1.6 * len(rows))
    highest = _peak([group for _, groups in rows for group in groups])
    for axes, (title, groups) in zip(several, rows, strict=True):
        for group in groups:
            mean, deviation = group.moments
            if np.isnan(mean):
                continue
            edges = np.arange(DEGREES + 1)
            colour = group.style["color"]
            axes.stairs(group.shares, edges, fill=True, color=colour, alpha=0.25, linewidth=0)
            label = f"{group.name} {spread_text(mean, deviation)}"
            axes.stairs(group.shares, edges, linewidth=1.3, label=label, **group.style)
            axes.axvline(mean, ymax=1 / _ROOM, linewidth=1.1, **group.style)
        _named(axes, title)
        axes.set(ylabel="% of the angles", ylim=(0, _ROOM * highest))
        if axes.patches:
            axes.legend(frameon=False, loc="upper right", fontsize=_SMALL, borderaxespad=0.2)
    several[-1].set(
        xlim=_reach([group for _, groups in rows for group in groups]), xlabel="angle to the class centre, degrees"
    )
    _second_x(several[0])
    return svg(drawn, salt)


def ridges(rows: Sequence[tuple[str, Sequence[Group]]], salt: str, mark: int | None = None) -> str:
    """Histograms of angles as curves, the first on top; before row ``mark`` stands the line where clouds begin."""
    shown = np.unique(np.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).round().astype(int))
    drawn, axes = figure(_WIDTH, 1.1 + 0.33 * len(shown))
    groups = [group for _, several in rows for group in several]
    highest = _peak(groups)
    middle = np.arange(DEGREES) + 0.5
    for place, row in enumerate(shown):
        for group in rows[row][1]:
            filled = np.flatnonzero(group.counts)
            part = slice(max(0, filled[0] - 1), filled[-1] + 2) if len(filled) else slice(0)
            curve = 1.1 * group.shares[part] / highest - place
            axes.fill_between(middle[part], -place, curve, color=group.style["color"], alpha=0.22, linewidth=0)
            axes.plot(middle[part], curve, linewidth=1.1, label=group.name if place == 0 else None, **group.style)
            axes.plot([group.moments[0]] * 2, [-place - 0.14, -place + 0.1], color=group.style["color"], linewidth=1.8)
    axes.set_yticks(-np.arange(len(shown)), [rows[row][0] for row in shown])
    if mark is not None:
        _line_at(axes, 0.55 - int(np.searchsorted(shown, mark)), across=True)
    axes.set(xlim=_reach(groups), xlabel="angle to the class centre, degrees", ylabel="epoch")
    axes.set_ylim(-len(shown) + 0.7, 1.9)
    axes.legend(frameon=False, loc="upper right", ncols=2, borderaxespad=0.2)
    _second_x(axes)
    return svg(drawn, salt)


def moments(epochs: Sequence[float], rows: Sequence[Sequence[Group]], start: float | None, salt: str) -> str:
    """Mean angle of each group over the epochs in a band of one standard deviation each side."""
    drawn, axes = figure(_WIDTH, 3.2)
    for groups in zip(*rows, strict=True):
        mean, deviation = np.array([group.moments for group in groups]).T
        axes.fill_between(
            epochs, mean - deviation, mean + deviation, color=groups[0].style["color"], alpha=0.16, linewidth=0
        )
        axes.plot(epochs, mean, linewidth=1.5, marker="o", markersize=2.5, label=groups[0].name, **groups[0].style)
    axes.set(xlabel="epoch", ylabel="degrees")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    _line_at(axes, start)
    axes.legend(**_OVER_LINES)
    _second_y(axes, "radians", np.deg2rad, np.rad2deg)
    return svg(drawn, salt)


def spreads(rows: Sequence[tuple[str, Sequence[Line]]], start: float | None, salt: str) -> str:
    """Angles in radians over the steps, with degrees on the right: (title, lines) of each panel, on one scale."""
    drawn, several = panels(len(rows), _WIDTH, 3.2 if len(rows) == 1 else 0.6 + 1.9 * len(rows))
    highest = max((_highest(line) for _, lines in rows for line in lines), default=1.0)
    for axes, (title, lines) in zip(several, rows, strict=True):
        _draw(axes, lines)
        _named(axes, title)
        axes.set(ylabel="radians", ylim=(0, 1.25 * highest))
        _line_at(axes, start)
        axes.legend(**_OVER_LINES, loc="upper right", ncols=3, fontsize=_SMALL, borderaxespad=0.2)
        _second_y(axes, "degrees", np.rad2deg, np.deg2rad)
    several[-1].set(xlabel="step")
    several[-1].set_xlim(left=0)
    return svg(drawn, salt)


def clouds(share: Line, sigma: Line, start: float | None, salt: str) -> str:
    """Per cent of the samples that got a cloud, and the clouds' mean sigma in radians, over the steps."""
    drawn, (above, below) = panels(2, _WIDTH, 3.8)
    for axes, line, title, label in (
        (above, share, "Samples with a cloud", "%"),
        (below, sigma, "Mean sigma of those clouds", "radians"),
    ):
        _draw(axes, [line])
        _named(axes, title)
        axes.set(ylabel=label)
        axes.set_ylim(0, 1.12 * _highest(line))
        _line_at(axes, start)
    _second_y(below, "degrees", np.rad2deg, np.deg2rad)
    below.set(xlabel="step")
    below.set_xlim(left=0)
    return svg(drawn, salt)


def people_map(points: NDArray[np.float64], names: Sequence[str], numbers: NDArray[np.int64], salt: str) -> str:
    """Images as points (n, 2), circles of people named H or P and crosses of those named T, a colour for each person.

    Args:
        points: (n, 2).
        names: (n,) of each image's person, such as H1 or T2.
        numbers: (n,) which colour; people of one kind have different ones as long as there are enough.
        salt: of the figure's ids, and its label.
    """
    drawn, axes = figure(_WIDTH, 4.4)
    of_image = np.asarray(names)
    for name in sorted(set(names), key=lambda name: (name[0], int(name[1:]))):
        mine = of_image == name
        colour = PEOPLE[int(numbers[mine][0]) % len(PEOPLE)]
        cross = name.startswith("T")
        shape: dict[str, Any] = {"marker": "x", "s": 30, "linewidths": 1.5} if cross else {"marker": "o", "s": 20}
        axes.scatter(*points[mine].T, color=colour, **shape)
        apart = np.linalg.norm(points[mine][:, None] - points[mine], axis=2)
        middle = apart.sum(axis=1).argmin()  # of the person's images, the one in their midst
        near = points[mine][apart[middle] <= 0.06 * np.ptp(points, axis=0).max()]
        axes.annotate(
            name,
            (points[mine][middle, 0], near[:, 1].max()),
            (0, 5),
            textcoords="offset points",
            ha="center",
            color=TEXT,
            fontsize=_SMALL,
            bbox={"facecolor": CARD, "alpha": 0.65, "linewidth": 0, "pad": 0.6},
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()
    axes.margins(0.07)
    return svg(drawn, salt)


def _draw(axes: Axes, lines: Sequence[Line]) -> None:
    for line in lines:
        x, y = averaged(np.asarray(line.steps, np.float64), np.asarray(line.values, np.float64))
        marker = "o" if len(x) < 25 else ""
        style = "--" if line.dashed else "-"
        colour = SERIES[line.colour % len(SERIES)]
        axes.plot(x, y, style, color=colour, label=line.label, linewidth=1.5, marker=marker, markersize=3)


def _highest(line: Line) -> float:
    values = np.asarray(line.values, np.float64)
    return float(np.max(values, initial=0.0, where=np.isfinite(values))) or 1.0


def _named(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", color=TEXT, fontsize=9.5)


def _line_at(axes: Axes, place: float | None, across: bool = False) -> None:
    """The mark where clouds begin, on the x axis or ``across`` it; none without a place."""
    if place is None:
        return
    (axes.axhline if across else axes.axvline)(place, color=TEXT, linewidth=1, linestyle=":")
    at, align = ((1, place), "right") if across else ((place, 0), "left")
    axes.annotate(
        "clouds begin",
        at,
        (-2, 2) if across else (3, 4),
        xycoords=("axes fraction", "data") if across else ("data", "axes fraction"),
        textcoords="offset points",
        ha=align,
        color=TEXT,
        fontsize=_SMALL,
    )


def _peak(groups: Sequence[Group]) -> float:
    """The largest share of a degree."""
    return max((float(group.shares.max()) for group in groups), default=0.0) or 1.0


def _reach(groups: Sequence[Group]) -> tuple[float, float]:
    """0 and the tens of degrees below which all groups have 99.9 % of their angles."""
    reach = 10
    for group in groups:
        total = int(group.counts.sum())
        if total:
            reach = max(reach, int(np.searchsorted(np.cumsum(group.counts), 0.999 * total)) + 1)
    return 0.0, float(min(DEGREES, -(-reach // 10) * 10))


def _second_x(axes: Axes) -> None:
    second = axes.secondary_xaxis("top", functions=(np.deg2rad, np.rad2deg))
    second.set_xlabel("radians", color=TEXT, fontsize=9.5)
    _plain(second)


def _second_y(axes: Axes, label: str, forth: Any, back: Any) -> None:
    second = axes.secondary_yaxis("right", functions=(forth, back))
    second.set_ylabel(label, color=TEXT, fontsize=9.5)
    _plain(second)


def _plain(second: Any) -> None:
    second.tick_params(color=LINE, labelcolor=TEXT, labelsize=9)
    for spine in second.spines.values():
        spine.set_color(LINE)
