"""Results as files: they come back as they were, and whatever else is in a file is one clear line."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from facetrain.errors import InputError
from facetrain.evaluation.result import (
    Curve,
    Histogram,
    Result,
    read_result,
    read_results,
    result_table,
    save_results,
    score_histogram,
    thinned,
)
from facetrain.evaluation.scores import Cell, roc


def made_up(**changes):
    genuine, impostor = np.linspace(0.2, 1, 50), np.linspace(-0.5, 0.6, 3000)
    points = roc(np.concatenate((genuine, impostor)), np.arange(3050) < 50)
    return replace(
        Result(
            "ijb-1:1",
            "IJB-C",
            "ab" * 32,
            "runs/<b>[red]demo",
            {"flip": True, "score": "dot product", "factor": 2, "shift": 0.5},
            {"rank-1": 0.75, "accuracy": 0.9873, "accuracy_std": 0.004},
            (Cell(1e-3, 0.9873, 0.25, 30), Cell(1e-5, 0.0, float("inf"), 0)),
            {"TPR@1e-3": (0.97, 0.99), "rank-1": (0.7, 0.8)},
            {"roc": thinned(points.fpr, points.tpr), "cmc": Curve((1, 2, 5), (0.75, 0.8, 0.9))},
            score_histogram(genuine, impostor),
            100,
            3,
            1.5,
            {"angle mean (rad)": 0.75, "false alarms": 1500.0},
        ),
        **changes,
    )


def test_a_result_comes_back_as_it_was(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made_up().save(tmp_path / "new" / "a.json")
        assert read_result(tmp_path / "new" / "a.json") == made_up()
    assert type(read_result(tmp_path / "new" / "a.json").switches["flip"]) is bool
    assert "Infinity" not in (tmp_path / "new" / "a.json").read_text()  # JSON knows none; other readers refuse it
    bare = Result("lfw", "lfw", "", "mine")
    save_results([made_up(), bare], tmp_path / "two.json")
    assert read_results(tmp_path / "two.json") == [made_up(), bare]
    with pytest.raises(InputError, match=r"two\.json is not .*: it holds 2 results where one is expected"):
        read_result(tmp_path / "two.json")


def test_a_file_from_before_there_were_figures_is_read(tmp_path):
    made_up().save(tmp_path / "a.json")
    tree = json.loads((tmp_path / "a.json").read_text())
    del tree["results"][0]["figures"]
    (tmp_path / "a.json").write_text(json.dumps(tree))
    assert read_result(tmp_path / "a.json") == made_up(figures={})


def test_numpy_scalars_are_written_as_numbers(tmp_path):
    made_up(metrics={"rank-1": np.float32(0.5)}, images=np.int64(7)).save(tmp_path / "a.json")
    assert read_result(tmp_path / "a.json") == made_up(metrics={"rank-1": 0.5}, images=7)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is not JSON"),
        ('{"format": ', "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("\udcff", "it is not JSON"),
        ("[1, 2]", 'it lacks "format"'),
        ('{"model": "a", "sets": {}}', 'it lacks "format"'),
        ('{"format": "facetrain results 2", "results": []}', 'it lacks "format"'),
        ('{"format": "facetrain results 1", "results": []}', "it holds no result"),
        ('{"format": "facetrain results 1", "results": 3}', "results: input should be a valid array"),
        ('{"format": "facetrain results 1", "results": [7]}', "results.0: input should be an object"),
        ('{"format": "facetrain results 1", "results": [{"cells": 7}]}', r"results\.0\.protocol: field required"),
        ('{"format": "facetrain results 1", "results": [{"cells": [7]}]}', r"results\.0\.protocol: field required"),
    ],
)
def test_what_is_no_result_file_is_one_line(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=rf"a\.json is not a result of facetrain eval: {reason}") as error:
        read_results(path)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        (("protocol",), 3, "protocol: input should be a valid string"),
        (("images",), "many", "images: input should be a valid integer"),
        (("images",), -1, "3 of -1 images cannot be unreadable"),
        (("metrics", "rank-1"), 75.0, "metrics: rank-1 = 75 is no rate from 0 to 1"),
        (("metrics", "rank-1"), None, "metrics.rank-1: input should be a valid number"),
        (("cells", 0, "tpr"), -0.5, "cells: TPR@1e-3 = -0.5 is no rate"),
        (("cells", 0, "fpr"), 0.0, "cells: TPR@0 = 0.9873 is no rate"),
        (("cells", 0, "impostors"), -1, "decided by -1 impostor scores"),
        (("cells", 0), [], "cells.0: input should be an object"),
        (("intervals", "rank-1"), [0.8, 0.7], "intervals: rank-1 = 0.8 to 0.7 is no interval"),
        (("intervals", "rank-1"), [0.8], "intervals.rank-1.1: field required"),
        (("curves", "cmc", "x"), [1, 2], "curves.cmc: a curve needs as many x as y"),
        (("curves", "cmc", "x"), [1, 5, 2], "curves.cmc: a curve's x must never fall"),
        (("histogram", "edges"), [0.0, 1.0], "histogram: a histogram of B bins needs B [+] 1 edges"),
        (("switches", "flip"), {"on": True}, "switches.flip"),
        (("figures", "false alarms"), "50", "figures.false alarms: input should be a valid number"),
        (("figures", "false alarms"), 1e999, "figures: false alarms = inf is no finite number"),
    ],
)
def test_a_value_that_is_not_what_it_must_be_is_named(tmp_path, where, value, reason):
    path = tmp_path / "a.json"
    made_up().save(path)
    tree = json.loads(path.read_text())
    *way, last = ("results", 0, *where)
    node = tree
    for part in way:
        node = node[part]
    node[last] = value
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=rf"a\.json is not a result of facetrain eval: .*{reason}"):
        read_result(path)


def test_a_missing_or_huge_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"none\.json cannot be read: No such file"):
        read_results(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_results(tmp_path)
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(1 << 27)
    with pytest.raises(InputError, match="it is larger than 64 MiB"):
        read_results(tmp_path / "huge.json")


def test_what_is_no_rate_cannot_be_made():
    with pytest.raises(InputError, match="rank-1 = nan is no rate"):
        made_up(metrics={"rank-1": float("nan")})
    with pytest.raises(InputError, match="not finite"):
        Curve((0, 1), (0, float("nan")))
    with pytest.raises(InputError, match="edges must rise"):
        Histogram((0, 0), (1,), (1,))
    with pytest.raises(InputError, match="a count is negative"):
        Histogram((0, 1), (1,), (-1,))


@given(st.integers(0, 2**32), st.integers(20, 4000), st.integers(4, 120), st.integers(1, 500))
@settings(deadline=None, max_examples=40)
def test_a_thinned_curve_never_lies_above_the_roc(seed, count, points, levels):
    rng = np.random.default_rng(seed)
    same = rng.random(count) < 0.3
    same[:2] = True, False
    full = roc(np.round(rng.normal(same, 1) * levels), same)
    thin = thinned(full.fpr, full.tpr, points)
    assert len(thin.x) <= max(points, 4)
    assert (
        {(0.0, 0.0), (1.0, 1.0)}
        <= set(zip(thin.x, thin.y, strict=True))
        <= set(zip(full.fpr.tolist(), full.tpr.tolist(), strict=True))
    )


def test_a_thinned_curve_stays_close():
    rng = np.random.default_rng(0)
    same = np.arange(200_000) < 20_000
    full = roc(rng.normal(2 * same, 1), same, drop_collinear=False)
    thin = thinned(full.fpr, full.tpr)
    assert len(thin.x) <= 1000
    rates = np.geomspace(1e-5, 1, 400)
    at = [
        y[np.searchsorted(x, rates, side="right") - 1]
        for x, y in ((full.fpr, full.tpr), map(np.array, (thin.x, thin.y)))
    ]
    assert (at[0] - at[1]).min() >= 0
    assert (at[0] - at[1]).max() < 0.01


def test_a_histogram_counts_every_score():
    one = score_histogram([0.5, 1.0], [-1.0, 0.0, 0.1], 4)
    assert one == Histogram((-1.0, -0.5, 0.0, 0.5, 1.0), (0, 0, 0, 2), (1, 0, 2, 0))
    assert sum(score_histogram([1.0], []).genuine) == 1
    assert score_histogram([0.5, 0.5], [0.5]).edges[0] < 0.5 < score_histogram([0.5, 0.5], [0.5]).edges[-1]


def test_the_console_table_shows_numbers_beside_their_switches():
    console = Console(width=160, record=True, color_system=None)
    table, remarks = result_table([made_up(), Result("lfw", "agedb[bold]", "", "runs/<b>[red]demo", images=9)])
    console.print(table)
    text = f"{console.export_text()} {remarks}"
    for expected in (
        "75.00",
        "98.73 ± 0.40",
        "98.73 (30)",
        "[97.00, 99.00]",
        "0.00 (0)*",
        "model runs/<b>[red]demo (abababababababab); 100 images, 3 UNREADABLE",
        "flip yes, score dot product, factor 2, shift 0.5; angle mean (rad) 0.75; false alarms 1500; 1.5 s",
        "agedb[bold]",
        "* decided by fewer than 10 of them",
    ):
        assert expected in text
    assert "accuracy_std" not in text


def test_data_sets_of_which_the_same_is_to_be_said_share_the_remark():
    _, remarks = result_table([made_up(dataset=name) for name in ("IJB-C G1", "IJB-C G2", "IJB-C")])
    assert remarks.startswith("IJB-C G1, IJB-C G2, IJB-C, ijb-1:1: model runs/<b>[red]demo (ab")
    assert remarks.count("model runs") == 1
