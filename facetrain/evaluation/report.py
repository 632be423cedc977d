"""A run as one HTML file that opens offline: numbers with their protocol, curves, images, recipe and versions."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facetrain.atomic import result_file
from facetrain.data.dataset import Images, PhotoFiles, class_counts
from facetrain.data.encoded import Encoded
from facetrain.data.images import encode_jpeg
from facetrain.errors import InputError
from facetrain.evaluation import plots
from facetrain.evaluation.leap_view import leap_section
from facetrain.evaluation.pairs import PairSet, Verification
from facetrain.evaluation.rundir import Run, read_run, recorded_images, recorded_sets
from facetrain.evaluation.scores import FEW, fpr_text

PEOPLE, PHOTOS, PAIRS, SIDE = 8, 6, 6, 96
"""People and photos of each in the grid, pairs in each group, pixels a side."""
CURVE_FPR = 1e-2
"""The rate whose TPR is drawn over the steps; in LFW, 30 of the impostor pairs decide it."""


def save_verification(run_dir: Path, name: str, result: Verification) -> None:
    """Keep the last result on a pair set where the report looks for it."""
    result.save(run_dir / "verification" / f"{name}.npz")


def write_report(
    run_dir: Path,
    train_images: Images | None = None,
    pair_sets: Sequence[PairSet] | None = None,
    *,
    title: str | None = None,
) -> Path:
    """Write ``report.html`` into a run's folder from what the run left there.

    Args:
        run_dir: holds metrics.jsonl, and where the run wrote them config.yaml, versions.json and verification/SET.npz.
        train_images: for the grid; None: those that config.yaml names, if they are still there.
        pair_sets: for the pictures of pairs, matched to the results by name; None: as above.
        title: the page's; None: the folder's name.

    Returns:
        The file.

    Raises:
        InputError: not a run's folder, a damaged file in it, or the report cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    run = read_run(run_dir)
    images = recorded_images(run.config) if train_images is None else train_images
    sets = recorded_sets(run.config) if pair_sets is None else pair_sets
    environment = Environment(
        loader=PackageLoader("facetrain", "evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        title=title or run_dir.resolve().name,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        run=run,
        few=FEW,
        cards=_cards(run, images),
        tables=_tables(run.results),
        roc=plots.roc_plot(run.results) if run.results else "",
        sets=[
            _set(name, result, next((one for one in sets if one.name == name), None)) for name, result in run.results
        ],
        curves=_curves(run),
        leap=leap_section(run),
        people=_people(images) if images is not None else [],
        duration=_duration(run.seconds),
        commit=_short(str(run.versions.get("commit", ""))),
    )
    path = run_dir / "report.html"
    with result_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _decision(result: Verification) -> tuple[str, float]:
    """The threshold that pairs are judged by: at FPR 1e-2, or the most accurate where too few impostors set that."""
    for cell in result.cells:
        if math.isclose(cell.fpr, 1e-2) and not cell.few:
            return "threshold at FPR 1e-2", cell.threshold
    return "threshold of the best accuracy", result.threshold


def _cards(run: Run, images: Images | None) -> list[tuple[str, str, str]]:
    """(label, value, remark) of the headline numbers."""
    cards = []
    for name, result in run.results[:3]:
        cards.append((f"Accuracy, {name}", f"{result.accuracy:.2%}", f"± {result.accuracy_std:.2%} over 10 folds"))
        sure = [cell for cell in result.cells if not cell.few]
        if sure:
            lowest = min(sure, key=lambda cell: cell.fpr)
            remark = f"decided by {lowest.impostors} impostor pairs"
            cards.append((f"TPR @ FPR {fpr_text(lowest.fpr)}, {name}", f"{lowest.tpr:.2%}", remark))
    if images is not None:
        cards.append(("Training images", f"{len(images):,}", f"of {images.num_classes:,} people"))
    if run.train:
        last = run.train[-1]
        cards.append(("Last loss", f"{last['loss']:.3f}", f"at step {last['step']:,}"))
    rates = [line["images_per_second"] for line in run.train if "images_per_second" in line]
    if rates and run.seconds:
        cards.append(("Training time", _duration(run.seconds), f"{np.median(rates):,.0f} images/s"))
    return cards


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _short(commit: str) -> str:
    """The first digits of a commit and its mark for changed files."""
    digits, mark, changes = commit.partition("+")
    return digits[:12] + mark + changes


def _tables(results: Sequence[tuple[str, Verification]]) -> list[dict[str, Any]]:
    """The TPR@FPR table, one for each protocol and each choice of rates that occurs."""
    kinds = [(result.protocol, tuple(cell.fpr for cell in result.decided)) for _, result in results]
    return [
        {
            "protocol": protocol,
            "rates": [fpr_text(fpr) for fpr in fprs],
            "rows": [one for one, kind in zip(results, kinds, strict=True) if kind == (protocol, fprs)],
        }
        for protocol, fprs in dict.fromkeys(kinds)
    ]


def _curves(run: Run) -> list[str]:
    """Loss, learning rate and speed of training, and each set's accuracy and TPR at ``CURVE_FPR`` over the steps."""
    drawn = []
    for key, name, unit in (
        ("loss", "Training loss", "loss"),
        ("lr", "Learning rate", "learning rate"),
        ("images_per_second", "Speed", "images/s"),
    ):
        lines = [line for line in run.train if isinstance(line.get(key), (int, float))]
        if lines:
            drawn.append(plots.curves(name, [("", [x["step"] for x in lines], [x[key] for x in lines])], unit))
    rate = fpr_text(CURVE_FPR)
    accuracy = _over_steps(run, lambda line: line["accuracy"])
    tpr = _over_steps(run, lambda line: line.get("tpr", {}).get(rate))
    checks = [("Verification accuracy", accuracy, "accuracy %"), (f"TPR at FPR {rate}", tpr, "TPR %")]
    drawn[2:2] = [plots.curves(name, series, unit) for name, series, unit in checks if series]
    return drawn


def _over_steps(run: Run, share: Callable[[dict[str, Any]], float | None]) -> list[tuple[str, list[int], list[float]]]:
    """(set, steps, per cent) of what ``share`` finds in the log's lines of each set; None: a line has none."""
    series = []
    for name, lines in run.verifications.items():
        found = [(int(line["step"]), value) for line in lines if (value := share(line)) is not None]
        if found:
            series.append((name, [step for step, _ in found], [100 * value for _, value in found]))
    return series


def _set(name: str, result: Verification, images: PairSet | None) -> dict[str, Any]:
    """Histogram and hardest pairs of one set."""
    decision = _decision(result)
    if images is not None and len(images) != 2 * len(result.same):
        images = None  # the file was changed since: its pictures would be the wrong ones
    groups = []
    for title, chosen, easiest_first in _groups(result, decision[1]):
        order = np.argsort(result.scores[chosen], kind="stable")
        pairs = chosen[order[::-1] if easiest_first else order]
        shown = pairs[:PAIRS] if images is not None else pairs[:0]
        groups.append({"title": title, "count": len(chosen), "pairs": [_pair(images, result, int(i)) for i in shown]})
    return {
        "name": name,
        "histogram": plots.histogram(name, result, decision),
        "decision": f"{decision[0]}, cosine {decision[1]:.3f}",
        "groups": groups,
        "pictured": images is not None,
    }


def _groups(result: Verification, threshold: float) -> list[tuple[str, NDArray[np.int64], bool]]:
    """(title, pairs, whether the highest score is the hardest) of wrong decisions, then of right ones."""
    accepted = result.scores >= threshold
    return [
        ("Wrong: same person, refused", np.flatnonzero(result.same & ~accepted), False),
        ("Wrong: different people, accepted", np.flatnonzero(~result.same & accepted), True),
        ("Right, but only just: same person, accepted", np.flatnonzero(result.same & accepted), False),
        ("Right, but only just: different people, refused", np.flatnonzero(~result.same & ~accepted), True),
    ]


def _pair(images: PairSet | None, result: Verification, i: int) -> dict[str, Any]:
    assert images is not None
    return {
        "number": i,
        "score": float(result.scores[i]),
        "pictures": [_picture(images, 2 * i), _picture(images, 2 * i + 1)],
    }


def _people(images: Images) -> list[dict[str, Any]]:
    """A few people from the one with the most photos to the one with the fewest, some photos of each."""
    counts = class_counts(images.labels, images.num_classes)
    by_size = np.argsort(-counts, kind="stable")
    by_size = by_size[counts[by_size] > 0]
    places = np.unique(np.linspace(0, len(by_size) - 1, min(PEOPLE, len(by_size))).round().astype(int))
    names = _names(images)
    people = []
    for person in by_size[places]:
        photos = np.flatnonzero(images.labels == person)
        shown = photos[np.unique(np.linspace(0, len(photos) - 1, min(PHOTOS, len(photos))).round().astype(int))]
        pictures = [_picture(images, int(i)) for i in shown]
        name = (
            Path(images.where(int(photos[0]))).parent.name if isinstance(images, PhotoFiles) else names.get(int(person))
        )
        people.append({"name": name or f"person {person}", "count": len(photos), "pictures": pictures})
    return people


def _names(images: Images) -> dict[int, str]:
    """Class -> person as names.txt beside a .rec says; empty where it is not there or of other people."""
    rec = getattr(images, "path", None)
    if rec is None:
        return {}
    try:
        *names, _ = Path(rec).with_name("names.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return {}
    return dict(enumerate(names)) if len(names) == images.num_classes else {}


def _picture(images: Encoded, i: int) -> str | None:
    """Image i as a data URI; None where it cannot be decoded."""
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    try:
        images.decode(i, pixels)
    except InputError:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(pixels, 88)).decode("ascii")
