"""Records of a run: metrics.jsonl and TensorBoard, over stops and resumes."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
import torch

from facetrain.monitor import Monitor

CPU = torch.device("cpu")
SPREADS = {"sigma_head": 0.11, "sigma_tail": None, "sigma_overall": 0.1, "cloud_share": 0.25, "cloud_sigma": None}
HEAD = [0] * 20 + [3, 5, 2] + [0] * 157


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _write(folder, start, steps):
    with Monitor(folder, start, 100, CPU, active=True) as monitor:
        for step in steps:
            monitor.leap(step, SPREADS)
            monitor.angles(step, step / 7, {"head": HEAD, "tail": [step] * 180})


def _board(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"), {"histograms": 0, "scalars": 0})
    return board.Reload()


def test_spreads_and_angles_are_recorded(tmp_path):
    _write(tmp_path, 0, [10])
    assert _lines(tmp_path) == [
        {"kind": "leap", "step": 10, **SPREADS},
        {"kind": "angles", "step": 10, "epoch": 1.4286, "head": HEAD, "tail": [10] * 180},
    ]
    board = _board(tmp_path)
    tags = board.Tags()
    assert set(tags["scalars"]) == {"leap/sigma_head", "leap/sigma_overall", "leap/cloud_share"}  # null is no scalar
    assert [(event.step, event.value) for event in board.Scalars("leap/cloud_share")] == [(10, 0.25)]
    assert set(tags["histograms"]) == {"leap_degrees/head", "leap_degrees/tail"}
    (event,) = board.Histograms("leap_degrees/head")
    step, head = event.step, event.histogram_value
    angles = np.repeat(np.arange(180) + 0.5, HEAD)
    assert (step, head.num, head.min, head.max) == (10, 10, 20, 23)
    assert head.sum == pytest.approx(angles.sum())
    assert head.sum_squares == pytest.approx((angles**2).sum())
    held = dict(zip(head.bucket_limit, head.bucket, strict=True))
    assert [held[degree + 1] for degree in (20, 21, 22)] == [3, 5, 2]
    assert sum(held.values()) == 10


def test_classes_without_angles_have_a_line_but_no_histogram(tmp_path):
    with Monitor(tmp_path, 0, 100, CPU, active=True) as monitor:
        monitor.angles(5, 1.0, {"tail": [0] * 180})
    assert _lines(tmp_path) == [{"kind": "angles", "step": 5, "epoch": 1.0, "tail": [0] * 180}]
    assert _board(tmp_path).Tags()["histograms"] == []


@pytest.mark.parametrize("cut", [False, True], ids=["ended in order", "killed in a line"])
def test_a_resumed_run_neither_repeats_nor_loses_lines(tmp_path, cut):
    _write(tmp_path, 0, [10, 20, 30])
    if cut:
        with (tmp_path / "metrics.jsonl").open("a") as log:
            log.write('{"kind": "angles", "step": 40, "ta')
    _write(tmp_path, 20, [20, 30, 40])  # from a checkpoint of step 20, whose lines were written before it
    assert [(line["kind"], line["step"]) for line in _lines(tmp_path)] == [
        (kind, step) for step in (10, 20, 30, 40) for kind in ("leap", "angles")
    ]
    board = _board(tmp_path)
    assert [event.step for event in board.Scalars("leap/cloud_share")] == [10, 20, 30, 40]
    assert [event.step for event in board.Histograms("leap_degrees/tail")] == [10, 20, 30, 40]


def test_other_ranks_write_nothing(tmp_path):
    with Monitor(tmp_path, 0, 100, CPU, active=False) as monitor:
        monitor.leap(10, SPREADS)
        monitor.angles(10, 1.0, {"tail": [1] * 180})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_costs_records_and_is_told_once(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Monitor(tmp_path, 0, 100, CPU, active=True) as monitor:
        monkeypatch.setattr(monitor._board, "add_scalar", full)
        for step in (1, 2):
            monitor.interval(step, 0.1, 3.0, 1.0, 0.1, 8)
            monitor.leap(step, SPREADS)
    assert capsys.readouterr().err.count("No space left on device; training goes on") == 1
    assert [line["step"] for line in _lines(tmp_path)] == [1, 1, 2, 2]
