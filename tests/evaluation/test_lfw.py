"""The LFW protocol's command: what it prints and writes."""

from __future__ import annotations

import json

import pytest
import torch
from made_up_results import made_up_pairs, made_up_result
from rich.console import Console

import facetrain.checkpoint
from facetrain.config import ModelConfig
from facetrain.data.pairs_file import write_bin
from facetrain.errors import InputError
from facetrain.evaluation.lfw import run_lfw, verification_table


def _printed(table):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return " ".join(console.export_text().split())


def test_console_table_says_its_protocol():
    result = made_up_result()
    text = _printed(verification_table([("lfw", result)]))
    tpr = f"{100 * result.cells[2].tpr:.2f} (20)"
    assert f"lfw 400 {100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}" in text
    assert tpr in text
    assert f"{100 * result.cells[1].tpr:.2f} (2)*" in text
    assert "image + mirror image; accuracy over 10 folds in file order; FPR rule: strict" in text
    assert "* decided by fewer than 10 of them" in text


def test_run_lfw_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    backbone = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten()).eval()
    monkeypatch.setattr(facetrain.checkpoint, "load_backbone", lambda path: (backbone, ModelConfig(input_size=16)))
    monkeypatch.setattr(facetrain.checkpoint, "fingerprint", lambda path: "f" * 64)
    result = made_up_result()
    write_bin(tmp_path / "toy.bin", list(made_up_pairs("toy", result).images), result.same)
    monkeypatch.setattr("facetrain.data.progress._PLAIN_SECONDS", 0.0)
    ((name, found),) = run_lfw(tmp_path, [tmp_path / "toy.bin"], rule="nearest", output=tmp_path / "out.json")
    out, said = capsys.readouterr()
    assert "toy" in out
    assert "embedding: 569 of 569, 0 s left, " in said  # the distinct ones of 800
    held = json.loads((tmp_path / "out.json").read_text())
    assert held["sets"] == {name: found.record()}
    assert held["model"] == "f" * 64
    assert "FPR rule: nearest" in held["protocol"]
    with pytest.raises(InputError, match="no pair set given"):
        run_lfw(tmp_path, [])
    with pytest.raises(InputError, match=r"must be a \.json file"):
        run_lfw(tmp_path, [tmp_path / "toy.bin"], output=tmp_path / "out.txt")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"folder\.json cannot be written: Is a directory"):
        run_lfw(tmp_path, [tmp_path / "toy.bin"], output=tmp_path / "folder.json")
