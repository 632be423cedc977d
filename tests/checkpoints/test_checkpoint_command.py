"""``facetrain checkpoint list | verify | convert``."""

import json
import os

import pytest
import small_checkpoints
import torch
from test_convert import _run

from facetrain.checkpoints.files import manifest_text
from facetrain.checkpoints.survey import survey
from facetrain.cli import main


@pytest.fixture
def run(tmp_path):
    """Checkpoints of steps 1 to 4, of which that of step 2 is the best."""
    small_checkpoints.write(tmp_path / "run" / "checkpoints", 1, 2, 3, 4, keep=4)
    file = tmp_path / "run" / "checkpoints" / "step_00000004" / "manifest.json"
    file.write_text(manifest_text(json.loads(file.read_text()) | {"best": {"step": 2, "metric": "a", "value": 1}}))
    return tmp_path / "run"


def test_list_shows_each_with_its_state(run, capsys):
    checkpoints = run / "checkpoints"
    (checkpoints / "step_00000001" / "backbone.safetensors").unlink()
    (checkpoints / "step_00000003" / "manifest.json").write_text("{")
    os.utime(checkpoints / "step_00000002" / "manifest.json", (0, 0))
    assert main(["checkpoint", "list", str(run)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "step_" in line]
    assert len(lines) == 4
    for line, words in zip(
        lines,
        [
            ["it lacks backbone.safetensors"],
            [" 2 ", " 1 ", "kB", "days", "best", "complete"],
            ["manifest.json is damaged"],
            [" 4 ", " 1 ", "kB", " s ", "newest", "complete"],
        ],
        strict=True,
    ):
        assert all(word in line for word in words), line
    assert [row.marks for row in survey(checkpoints)] == [(), ("best",), (), ("newest",)]


def test_verify_reads_everything_and_ends_with_2_at_damage(run, capsys):
    checkpoints = run / "checkpoints"
    assert main(["checkpoint", "verify", str(run)]) == 0
    out = capsys.readouterr().out
    assert out.count(": good, 4 files, ") == 4
    for step in (2, 3):
        file = checkpoints / f"step_0000000{step}" / "optimizer.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    assert main(["checkpoint", "verify", str(run)]) == 2
    out, err = capsys.readouterr()
    assert out.count(": good") == 2
    assert err.count("optimizer.safetensors is damaged") == 2
    assert "Traceback" not in err
    assert main(["checkpoint", "verify", str(checkpoints / "step_00000004")]) == 0
    assert main(["checkpoint", "verify", str(checkpoints / "step_00000003")]) == 2


@pytest.mark.parametrize("command", [["list"], ["verify"]])
def test_where_there_is_nothing(tmp_path, capsys, command):
    assert main(["checkpoint", *command, str(tmp_path)]) == 2
    assert "holds no checkpoint; expected a run's folder or one of its checkpoints" in capsys.readouterr().err
    assert main(["checkpoint", *command, str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_convert(tmp_path, capsys):
    run = _run(tmp_path / "run", input_size=16)
    assert main(["checkpoint", "convert", str(run), str(tmp_path / "model.pt")]) == 0
    assert "model.pt: 0.2 MB; insightface's own constructors begin 64 wide" in capsys.readouterr().out
    assert torch.load(tmp_path / "model.pt", weights_only=True)["conv1.weight"].shape == (4, 3, 3, 3)
    assert main(["checkpoint", "convert", str(run), str(tmp_path / "model.bin")]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
