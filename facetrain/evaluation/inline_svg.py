"""Figures of a page as inline SVG, drawn by matplotlib; their colours are the page's, so they follow light and dark."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that matplotlib draws with; each is replaced by what the page defines.
TEXT, LINE, BAND, CARD = "#010101", "#020202", "#030303", "#060606"
SERIES = tuple(f"#0400{number:02x}" for number in range(6))
PEOPLE = tuple(f"#0500{number:02x}" for number in range(8))
"""Of people: eight that colour-blind readers tell apart, after Paul Tol's muted scheme."""

_COLOURS = (
    {TEXT: "currentColor", LINE: "var(--line)", BAND: "var(--band)", CARD: "var(--card)"}
    | {stand_in: f"var(--series-{number})" for number, stand_in in enumerate(SERIES)}
    | {stand_in: f"var(--person-{number})" for number, stand_in in enumerate(PEOPLE)}
)

_MOST_POINTS = 600
_LONGEST = 32  # letters of a name


def panels(rows: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """An empty figure of ``width`` x ``height`` inches, and its axes from top to bottom, which share their x."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    figure.patch.set_visible(False)
    several = list(figure.subplots(rows, sharex=True, squeeze=False)[:, 0])
    for axes in several:
        axes.patch.set_visible(False)
        axes.grid(color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(LINE)
        axes.tick_params(color=LINE, labelcolor=TEXT, labelsize=9)
    return figure, several


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of ``width`` x ``height`` inches with one pair of axes."""
    made, (axes,) = panels(1, width, height)
    return made, axes


def svg(figure: Figure, salt: str) -> str:
    """The figure as an <svg> element that needs nothing from outside and shares no id with another one."""
    from matplotlib import rc_context

    for axes in figure.axes:
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *(legend_texts(axes))):
            text.set_color(TEXT)
            text.set_fontsize(9.5)
    buffer = io.StringIO()
    about = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "path.simplify_threshold": 0.3}):
        figure.savefig(buffer, format="svg", metadata=about)
    element = buffer.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    # HTML knows the namespace; nothing here may look like a link.
    element = re.sub(r' xmlns(:\w+)?="[^"]*"', "", element)
    element = element.replace("xlink:href", "href")
    used = set(re.findall(r"#([\w-]+)", element))
    element = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", element)
    head = rf'<svg role="img" aria-label="{_plain(salt)}" \1>'
    element = re.sub(r'<svg [^>]*?(viewBox="[^"]+")[^>]*>', head, element)
    for stand_in, colour in _COLOURS.items():
        element = element.replace(stand_in, colour)
    return element


def averaged(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The finite points of a line over steps; long ones are averaged over parts of equal size."""
    good = np.isfinite(y)
    x, y = x[good], y[good]
    if len(x) <= _MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _MOST_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def words(text: str) -> str:
    """A user's text, short and literal: no formula between dollars, no ``_`` in front that hides it from legends."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}…{text[-(_LONGEST // 2 - 1) :]}"
    text = text.replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def legend_texts(axes: Axes) -> list[Any]:
    """The texts of the legend, if there is one."""
    legend = axes.get_legend()
    return list(legend.get_texts()) if legend else []


def _plain(text: str) -> str:
    return re.sub(r"[^\w .-]", "_", text).replace("\\", "_")
