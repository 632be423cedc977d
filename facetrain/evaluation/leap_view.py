"""What LEAP did in a run, as a report shows it: angles to the class centres, spreads, clouds and maps of people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from facetrain.evaluation import leap_plots
from facetrain.evaluation.inline_svg import words
from facetrain.evaluation.leap_maps import MAP_CAPTION, people_maps
from facetrain.evaluation.leap_plots import Group, Line
from facetrain.evaluation.rundir import Angles, PeopleMap, Run, recorded_section

PAPER = (
    ("Paper, baseline", ("0.463 ± 0.030", "0.288 ± 0.023")),
    ("Paper, LEAP", ("–", "0.201")),
)
"""Liu et al., CVPR 2020, section 1: what it measured of head and of tail classes, on DukeMTMC-reID."""
_SIGMAS = (("sigma_head", "head", 0), ("sigma_tail", "tail", 1), ("sigma_overall", "all classes, Eq. 9", 2))
_ALL = "all classes"
_MEASURED = (
    "Angles between an embedding and the centre of its class, as the classes' memory rings held them; a class counts "
    "with as many angles as its ring has."
)
_SPREAD = (
    "Sigma is the square root of a mean over classes of the angles' variance within the class: of all head or tail "
    "classes alike (Eq. 6), or weighted by training images less one (Eq. 9)."
)


def leap_section(run: Run) -> dict[str, Any] | None:
    """What the report's section shows; None where the run left nothing of LEAP."""
    if not (run.leap or run.angles or run.maps):
        return None
    start = cloud_start(run)
    return {
        "settings": _settings(run),
        "clouds": start is not None,
        "cards": _cards(run),
        "table": _table(run, start),
        "paper": PAPER,
        "figures": [*_angle_figures(run, start), *_step_figures(run, start)],
        "maps": people_maps([(_map_title(one, run, start), one) for one in _first_and_last(run.maps)], "report"),
        "map_caption": MAP_CAPTION,
    }


def comparison_figures(runs: Sequence[tuple[str, Run]]) -> list[tuple[str, str, str]]:
    """Runs beside each other as (title, svg, caption): angles at the end, sigma over the steps, the last map of each.

    Args:
        runs: (name, run) of each; those that left nothing of LEAP are left out.
    """
    found = []
    last = [(name, run.angles[-1], _split(run)) for name, run in runs if run.angles]
    if last:
        rows = [(f"{words(name)}, epoch {record.epoch:g}", _groups(record, split)) for name, record, split in last]
        found.append(("Angles at the end", leap_plots.histograms(rows, "Angles at the end, by run"), _MEASURED))
    panels = []
    for key, label, _ in _SIGMAS:
        lines = [_line(run, key, words(name), i) for i, (name, run) in enumerate(runs) if _has(run, key)]
        if lines:
            panels.append((f"Sigma, {label}", lines))
    if panels:
        found.append(
            ("Sigma over the steps", leap_plots.spreads(panels, None, "Sigma over the steps, by run"), _SPREAD)
        )
    maps = [(f"{name}, step {run.maps[-1].step:,}", run.maps[-1]) for name, run in runs if run.maps]
    how = f"{MAP_CAPTION} People that several maps show have the same name and colour."
    for title, drawn, caption in people_maps(maps, "comparison"):
        found.append((f"People: {title}", drawn, f"{caption} {how}".strip()))
        how = ""  # once is enough
    return found


def cloud_start(run: Run) -> int | None:
    """The step after which clouds began: the map's that was made then, else the first record's that saw one."""
    first = next((int(line["step"]) for line in run.leap if line.get("cloud_share")), None)
    if first is None:
        return None
    return next((one.step for one in run.maps if one.step < first), first)


def _split(run: Run) -> bool:
    """Whether all records know head from tail classes."""
    return all(record.head is not None for record in run.angles)


def _groups(record: Angles, split: bool) -> list[Group]:
    if split and record.head is not None:
        return [Group("head", record.head), Group("tail", record.tail)]
    return [Group(_ALL, record.tail if record.head is None else record.head + record.tail)]


def _angle_figures(run: Run, start: int | None) -> list[tuple[str, str]]:
    """(svg, caption) of the angles: a few epochs, all epochs, and their moments."""
    if not run.angles:
        return []
    split = _split(run)
    rows = [_groups(record, split) for record in run.angles]
    few = [
        (f"{what}: epoch {run.angles[i].epoch:g}, step {run.angles[i].step:,}", rows[i])
        for i, what in _chosen(run.angles, start)
    ]
    figures = [(leap_plots.histograms(few, "Angles to the class centres"), _MEASURED)]
    if len(rows) > 1:
        epochs = [record.epoch for record in run.angles]
        named = [(f"{epoch:g}", row) for epoch, row in zip(epochs, rows, strict=True)]
        mark = None if start is None else sum(record.step <= start for record in run.angles)
        drawn = leap_plots.ridges(named, "Angles to the class centres over the epochs", mark)
        figures.append((drawn, "The same over the epochs, on one scale; short strokes are means."))
        last = run.angles[-1]
        place = None if start is None or not last.step else start * last.epoch / last.step
        drawn = leap_plots.moments(epochs, rows, place, "Mean angle over the epochs")
        caption = (
            "Mean angle and a band of one standard deviation, of all angles together: the band also holds what differs"
        )
        figures.append((drawn, f"{caption} between classes."))
    return figures


def _chosen(records: Sequence[Angles], start: int | None) -> list[tuple[int, str]]:
    """(place, name) of the first record, that at the clouds' start or in the middle, and the last."""
    last = len(records) - 1
    if start is None:
        middle, name = last // 2, "Half-way"
    else:
        middle, name = max(0, sum(record.step <= start for record in records) - 1), "When clouds began"
    picked = {last: "End", 0: "First"} | ({middle: name} if middle not in (0, last) or start is not None else {})
    return sorted(picked.items())


def _step_figures(run: Run, start: int | None) -> list[tuple[str, str]]:
    """(svg, caption) of what is recorded with the loss."""
    figures = []
    lines = [_line(run, key, label, colour) for key, label, colour in _SIGMAS if _has(run, key)]
    if lines:
        figures.append((leap_plots.spreads([("Spread within a class, sigma", lines)], start, "Sigma"), _SPREAD))
    if start is not None:
        share = _line(run, "cloud_share", "", 2, 100.0)
        drawn = leap_plots.clouds(share, _line(run, "cloud_sigma", "", 3), start, "Clouds over the steps")
        caption = "Share of the samples that got a cloud since the record before, and the mean standard deviation of"
        figures.append((drawn, f"{caption} those clouds' angles."))
    return figures


def _has(run: Run, key: str) -> bool:
    return any(line.get(key) is not None for line in run.leap)


def _line(run: Run, key: str, label: str, colour: int, factor: float = 1.0) -> Line:
    values = [np.nan if line.get(key) is None else factor * line[key] for line in run.leap]
    return Line(label, [line["step"] for line in run.leap], values, colour, dashed=key == "sigma_tail")


def _cards(run: Run) -> list[tuple[str, str, str]]:
    """(label, value, remark) of the last spreads and clouds."""
    if not run.leap:
        return []
    last = run.leap[-1]
    keys = [key for key in ("sigma_head", "sigma_tail") if last.get(key) is not None] or ["sigma_overall"]
    cards = [
        (f"Sigma, {label}", f"{last[key]:.3f} rad", f"{np.degrees(last[key]):.1f}°, at step {last['step']:,}")
        for key, label, _ in _SIGMAS
        if key in keys and last.get(key) is not None
    ]
    if any(line.get("cloud_share") for line in run.leap):
        sigma = last.get("cloud_sigma")
        remark = "at the last record" if sigma is None else f"mean sigma {sigma:.3f} rad ({np.degrees(sigma):.1f}°)"
        cards.append(("Cloud share", f"{last.get('cloud_share') or 0:.1%}", remark))
    return cards


def _table(run: Run, start: int | None) -> dict[str, Any]:
    """Mean and standard deviation in radians, head (or all classes) and tail, as measured."""
    split = _split(run)
    rows = []
    for i, what in _chosen(run.angles, start) if run.angles else []:
        of_groups = [np.deg2rad(group.moments) for group in _groups(run.angles[i], split)]
        texts = ["–" if np.isnan(mean) else f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in of_groups]
        rows.append((f"Mean angle, {what[0].lower()}{what[1:]}", texts))
    at_start = [line for line in run.leap if start is not None and line["step"] <= start]
    for line, what in [(line, "when clouds began") for line in at_start[-1:]] + [
        (line, "end") for line in run.leap[-1:]
    ]:
        found = [line.get(key) for key in ("sigma_head", "sigma_tail")]
        if split and found != [None, None]:
            rows.append((f"Sigma, {what}", ["–" if value is None else f"{value:.3f}" for value in found]))
    return {"split": split and bool(rows), "rows": rows}


def _first_and_last(maps: Sequence[PeopleMap]) -> list[PeopleMap]:
    return [maps[0], maps[-1]] if len(maps) > 1 else list(maps)


def _map_title(one: PeopleMap, run: Run, start: int | None) -> str:
    end = max((int(line["step"]) for line in run.train), default=0)
    name = "When clouds began" if one.step == start else "At the end" if one.step >= end else "In between"
    return f"{name}, step {one.step:,}"


def _settings(run: Run) -> str:
    """What the recipe says about it, in one line; empty where it is not known."""
    leap = recorded_section(run.config, "leap")
    if "variant" not in leap:
        return ""
    images = leap.get("head_threshold")
    words = [
        "clouds off, centres and angles only tracked" if leap["variant"] == "off" else f"variant {leap['variant']}",
        f"head: more than {images} training images" if images is not None else "no line between head and tail",
        f"a centre keeps {leap.get('center_gamma')} of itself at an update",
        f"angles against the {leap.get('angle_against')} centre",
        f"memory ring: {leap.get('memory_factor')} × the class's training images",
    ]
    if leap["variant"] != "off":
        words.append(f"noise {leap.get('cloud_noise')}, clouds for {leap.get('cloud_for')}")
    if leap.get("fixed_sigma") is not None:
        words.append(f"every cloud has sigma {leap['fixed_sigma']} rad")
    return " · ".join(words)
