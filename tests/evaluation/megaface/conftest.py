"""A rendered set in MegaFace's form, for the tests of the protocol."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from facetrain.checkpoints.backbones import write_backbone
from facetrain.config import ModelConfig
from facetrain.evaluation.megaface.data import Data
from facetrain.evaluation.megaface.run import Written, run_megaface
from facetrain.models import build_backbone

TOOL = Path(__file__).parents[3] / "tools" / "make_megaface_fixture.py"
PROBES, DISTRACTORS = 18, 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A rendered set, a small model, and its features."""
    root = tmp_path_factory.mktemp("megaface")
    command = [sys.executable, TOOL, root / "data", "--people", "3", "--size", "24"]
    command += ["--probes", str(PROBES), "--distractors", str(DISTRACTORS)]
    assert f"{PROBES} probes of 3 people" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    config = ModelConfig(name="iresnet18", width=8, input_size=24, embedding_size=16)
    write_backbone(root / "model.safetensors", build_backbone(config).eval(), config, fingerprint="c" * 64)
    run_megaface(
        root / "model.safetensors",
        Data(root / "data"),
        written=Written(features=root / "features"),
        algo="toy",
        extract_only=True,
    )
    return root
