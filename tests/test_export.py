import importlib.util
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open

from facetrain import __version__, export
from facetrain.checkpoints import backbones
from facetrain.config import ModelConfig
from facetrain.data.synthetic import render
from facetrain.errors import InputError, RunError
from facetrain.models import build_backbone, normalise

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZE = 24
MODEL = ModelConfig(width=4, input_size=SIZE, embedding_size=8)


def _backbone(seed):
    """Not as initialised: running statistics, scales and slopes have moved, so that each of them counts."""
    torch.manual_seed(seed)
    backbone = build_backbone(MODEL).train()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
        for _ in range(3):
            backbone(torch.rand(16, 3, SIZE, SIZE) * 2 - 1)
    return backbone.eval()


@pytest.fixture(scope="module")
def backbone():
    return _backbone(0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, backbone):
    path = tmp_path_factory.mktemp("trained") / "backbone.safetensors"
    backbones.write_backbone(path, backbone, MODEL)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trained):
    """(file, everything printed): one export, which takes seconds, in a process whose whole output is seen."""
    out = tmp_path_factory.mktemp("exported") / "new" / "model.onnx"
    code = (
        "from pathlib import Path; from facetrain.export import export; import sys;"
        "report = export(Path(sys.argv[1]), Path(sys.argv[2])); print(report.difference / report.largest)"
    )
    command = [sys.executable, "-W", "default", "-c", code, trained, out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


@pytest.fixture(scope="module")
def session(exported):
    return onnxruntime.InferenceSession(exported[0], providers=["CPUExecutionProvider"])


def test_export_says_nothing_and_reports_a_small_difference(exported):
    out, stdout, stderr = exported
    assert stderr == ""
    assert 0 <= float(stdout) < 1e-5
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("batch", [1, 2, 7, 16])
def test_any_batch_gives_the_backbones_embeddings(session, backbone, batch):
    images = torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(batch)) * 2 - 1
    with torch.no_grad():
        expected = backbone(images).numpy()
    (found,) = session.run(None, {"input": images.numpy()})
    assert found.shape == (batch, MODEL.embedding_size)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_graph_as_insightface_looks_at_it(exported, session):
    assert export.insightface_scaling(onnx.load(exported[0]).graph) == (127.5, 127.5)
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("input", "tensor(float)", [3, SIZE, SIZE])
    assert isinstance(taken.shape[0], str)
    (given,) = session.get_outputs()
    assert given.shape[1:] == [MODEL.embedding_size]


def test_opencvs_bgr_image_takes_insightfaces_way_to_the_same_embedding(session, backbone):
    rgb = render(0, 0, 1, SIZE)
    assert np.abs(rgb[:, :, 0].astype(int) - rgb[:, :, 2]).mean() > 5  # in colour, as not all photos are
    blob = cv2.dnn.blobFromImages([rgb[:, :, ::-1].copy()], 1 / 127.5, (SIZE, SIZE), (127.5,) * 3, swapRB=True)
    with torch.no_grad():
        expected = backbone(normalise(torch.from_numpy(rgb)[None])).numpy()
    (found,) = session.run(None, {"input": blob})
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    (other,) = session.run(None, {"input": blob[:, ::-1].copy()})
    assert np.abs(other - expected).max() > 1e-2 * np.abs(expected).max()


def test_metadata_and_no_trace_of_the_machine(exported, trained):
    proto = onnx.load(exported[0])
    about = {entry.key: entry.value for entry in proto.metadata_props}
    assert about.keys() == {"model", "fingerprint", "facetrain"}
    assert ModelConfig.model_validate_json(about["model"]) == MODEL
    assert about["fingerprint"] == backbones.fingerprint(trained)
    assert about["facetrain"] == __version__
    content = exported[0].read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content
    assert not any(node.op_type == "Dropout" for node in proto.graph.node)


@pytest.mark.parametrize(
    ("names", "scaling"),
    [
        (["Sub_0", "Mul_1", "Conv_2"], (0, 1)),
        (["_minusscalar0", "_mulscalar0"], (0, 1)),
        (["Sub_0", "Conv_1"], (127.5, 127.5)),
        (["node_Conv_0"] * 8 + ["Sub_0", "Mul_1"], (127.5, 127.5)),
    ],
)
def test_insightfaces_rule(names, scaling):
    nodes = [onnx.helper.make_node("Identity", [], [], name=name) for name in names]
    assert export.insightface_scaling(onnx.helper.make_graph(nodes, "graph", [], [])) == scaling


def test_a_file_of_other_weights_is_refused(exported, backbone):
    content = exported[0].read_bytes()
    assert export.compare(content, backbone, SIZE)[0] < 1e-3
    with pytest.raises(RunError, match="differ by"):
        export.compare(content, _backbone(1), SIZE)
    broken = _backbone(0)
    broken.fc.bias.data[3] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        export.compare(content, broken, SIZE)


def test_a_failed_comparison_leaves_what_was_there(exported, trained, tmp_path, monkeypatch):
    content = exported[0].read_bytes()
    monkeypatch.setattr(export, "to_onnx", lambda *args: content)
    monkeypatch.setattr(export, "load_backbone", lambda path: (_backbone(1), MODEL))
    out = tmp_path / "model.onnx"
    out.write_text("older")
    with pytest.raises(RunError):
        export.export(trained, out)
    assert out.read_text() == "older"
    assert list(tmp_path.iterdir()) == [out]


def test_a_failed_write_leaves_what_was_there(trained, tmp_path, monkeypatch):
    def full(file, *args, **about):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_backbone", full)
    out = tmp_path / "model.safetensors"
    out.write_text("older")
    with pytest.raises(InputError, match="cannot be written: No space left"):
        export.export(trained, out)
    assert out.read_text() == "older"
    assert list(tmp_path.iterdir()) == [out]


def test_safetensors_holds_the_same_weights(trained, backbone, tmp_path):
    report = export.export(trained, tmp_path / "deep" / "model.safetensors")
    assert (report.difference, report.largest, report.size) == (None, None, report.path.stat().st_size)
    (tmp_path / "usual").touch()
    assert report.path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    found, model = backbones.load_backbone(report.path)
    assert model == MODEL
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    again = export.export(report.path, report.path.with_name("again.dat"), "safetensors")
    with safe_open(again.path, "numpy") as held:
        assert held.metadata()["fingerprint"] == backbones.fingerprint(report.path)


@pytest.mark.parametrize(
    ("out", "format", "message"),
    [
        ("model.pt", None, "must end in .onnx or .safetensors"),
        ("model.onnx", "tflite", "format tflite is not known; expected onnx or safetensors"),
        ("folder.onnx", None, "is a folder"),
        ("backbone.safetensors", None, "would change the checkpoint"),
        ("file/model.safetensors", None, "is a file; expected a folder, or none yet"),
    ],
)
def test_what_cannot_be_written(trained, tmp_path, out, format, message):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    source = tmp_path / "backbone.safetensors"
    source.write_bytes(trained.read_bytes())
    with pytest.raises(InputError, match=re.escape(message)):
        export.export(source, tmp_path / out, format)
    assert source.read_bytes() == trained.read_bytes()


def test_nothing_is_written_into_a_checkpoint(trained, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="would change the checkpoint"):
        export.export(trained, tmp_path / "model.safetensors")


def test_missing_packages_are_named(trained, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(InputError, match=r"packages that are not installed: pip install onnxscript$"):
        export.export(trained, tmp_path / "model.onnx")


def test_weights_beyond_protobufs_limit(monkeypatch, backbone):
    monkeypatch.setattr(export, "_LARGEST_FILE", 10_000)
    with pytest.raises(InputError, match=r"export to \.safetensors"):
        export.to_onnx(backbone, MODEL, {})
