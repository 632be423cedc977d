"""ONNX recognisers of every make in the place of a backbone, beside the same mathematics in PyTorch."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from embedding_toys import SIZE, Photos, Toy, expected

from facetrain.errors import InputError
from facetrain.evaluation.embedder import open_embedder
from facetrain.evaluation.onnx_model import OnnxModel

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper = onnx.helper


def write(path, shape=("n", 3, SIZE, SIZE), raw=False, nodes=None):
    """The toy of embedding_toys as an ONNX file; ``raw``: it scales pixels itself."""
    toy = Toy().eval()
    scale = (toy.norm.weight / torch.sqrt(toy.norm.running_var + toy.norm.eps)).detach().numpy()
    weight = toy.flat.weight.detach().numpy().T * scale
    values = {"weight": weight.astype(np.float32), "half": np.float32(127.5), "part": np.float32(1 / 127.5)}
    scaling = [
        helper.make_node("Sub", ["images", "half"], ["centred"], name="Sub_0"),
        helper.make_node("Mul", ["centred", "part"], ["scaled"], name="Mul_1"),
    ]
    nodes = nodes or [
        *(scaling if raw else []),
        helper.make_node("Flatten", ["scaled" if raw else "images"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "weight"], ["rows"], name="matmul"),
        helper.make_node("Abs", ["rows"], ["second"], name="abs"),
    ]
    images = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("rows", "second")]
    used = {name for node in nodes for name in node.input}
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in values.items() if name in used]
    graph = helper.make_graph(nodes, "toy", [images], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, path)
    return path


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("batch", ["n", -1, 1, 4])
def test_rows_are_those_of_the_same_network_in_pytorch(tmp_path, flip, raw, batch):
    photos = Photos(11)
    embedder = open_embedder(write(tmp_path / "toy.onnx", (batch, 3, SIZE, SIZE), raw), batch_size=3)
    assert (embedder.input_size, embedder.ready_made) == (SIZE, False)
    found = embedder.embed(photos, flip=flip).rows
    np.testing.assert_allclose(found, expected(photos, flip), rtol=1e-4, atol=1e-5)


def test_it_is_cached_by_the_files_own_hash(tmp_path, monkeypatch):
    photos, cache = Photos(5), tmp_path / "cache"
    path = write(tmp_path / "toy.onnx")
    first = open_embedder(path, cache=cache)
    rows = first.embed(photos).rows
    with monkeypatch.context() as patch:
        patch.setattr(OnnxModel, "forward", lambda *_: pytest.fail("embedded again"))
        np.testing.assert_array_equal(open_embedder(path, cache=cache).embed(photos).rows, rows)
    path.write_bytes(path.read_bytes() + b"\x32\x00")  # an empty producer's text: the same graph in another file
    assert open_embedder(path).fingerprint != first.fingerprint


def test_it_embeds_into_an_npz_file(tmp_path):
    from facetrain.evaluation.npz import embed_to_npz

    photos = Photos(5)
    for i, file in enumerate(photos.files):
        (tmp_path / f"{i}.jpg").write_bytes(file)
    (tmp_path / "list.txt").write_text("".join(f"{i}.jpg\n" for i in range(5)))
    path = write(tmp_path / "toy.onnx")
    assert embed_to_npz(path, tmp_path / "list.txt", tmp_path / "out.npz").shape == (5, 5)
    with np.load(tmp_path / "out.npz") as held:
        np.testing.assert_allclose(held["embeddings"], expected(photos, True), rtol=1e-4, atol=1e-5)
        assert str(held["model"]) == open_embedder(path).fingerprint


POOL = [
    helper.make_node("GlobalAveragePool", ["images"], ["pooled"], name="pool"),
    helper.make_node("Flatten", ["pooled"], ["rows"], name="flat"),
    helper.make_node("Abs", ["rows"], ["second"], name="abs"),
]
IMAGES = [helper.make_node("Abs", ["images"], ["rows"]), helper.make_node("Abs", ["rows"], ["second"])]


@pytest.mark.parametrize("side", [("h", "w"), (None, None), (-1, -1)])
def test_a_file_of_any_size_gets_the_fields(tmp_path, side):
    embedder = open_embedder(write(tmp_path / "any.onnx", ("n", 3, *side), nodes=POOL))
    assert embedder.input_size == 112
    assert embedder.embed(Photos(2)).rows.shape == (2, 3)


@pytest.mark.parametrize(
    ("shape", "nodes", "message"),
    [
        (("n", SIZE, SIZE, 3), None, r"takes tensor\(float\) .* expected float32 images \(batch, 3, size, size\)"),
        (("n", 3 * SIZE * SIZE), None, r"takes tensor\(float\) .* expected float32 images"),
        (("n", 3, SIZE, 2 * SIZE), POOL, r"takes tensor\(float\) .* expected float32 images"),
        (("n", 3, "h", "w"), None, r"does not take \(batch, 3, 112, 112\): "),
        (("n", 3, SIZE, SIZE), IMAGES, r"gives float32 \(1, 3, 16, 16\); expected float32 embeddings \(batch, D\)"),
    ],
)
def test_another_kind_of_model_is_named(tmp_path, shape, nodes, message):
    with pytest.raises(InputError, match=rf"toy\.onnx {message}"):
        open_embedder(write(tmp_path / "toy.onnx", shape, nodes=nodes))


def test_damaged_files_and_missing_packages_are_one_line(tmp_path, monkeypatch):
    path = write(tmp_path / "toy.onnx")
    whole = path.read_bytes()
    for content in (b"", b"no model", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"toy\.onnx cannot be (read as ONNX|run by onnxruntime): ") as caught:
            open_embedder(path)
        assert "\n" not in str(caught.value)
    model = onnx.load_model_from_string(whole)
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(InputError, match=r"toy\.onnx keeps its weights in other files, .* save it as one file"):
        open_embedder(path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"toy\.onnx needs .* not installed: pip install onnx onnxruntime"):
        open_embedder(path)


@pytest.mark.slow
def test_an_exported_checkpoint_gives_the_checkpoints_rows(tmp_path):
    from facetrain.checkpoints.backbones import write_backbone
    from facetrain.config import ModelConfig
    from facetrain.export import export
    from facetrain.models import build_backbone

    torch.manual_seed(0)
    config = ModelConfig(name="iresnet18", width=8, input_size=32, embedding_size=8)
    write_backbone(tmp_path / "small.safetensors", build_backbone(config).eval(), config)
    export(tmp_path / "small.safetensors", tmp_path / "small.onnx")
    photos = Photos(9)
    own = open_embedder(tmp_path / "small.safetensors").embed(photos).rows
    onnx_rows = open_embedder(tmp_path / "small.onnx").embed(photos).rows
    np.testing.assert_allclose(onnx_rows, own, rtol=1e-4, atol=1e-5 * np.abs(own).max())
