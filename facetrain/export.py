"""A trained backbone for use elsewhere: ONNX, as insightface's runtime reads it, or safetensors, as facetrain does."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import facetrain
from facetrain.atomic import check_folder, result_file
from facetrain.checkpoints.backbones import find, fingerprint, load_backbone, write_backbone
from facetrain.checkpoints.files import MANIFEST
from facetrain.config import ModelConfig
from facetrain.data.images import resize
from facetrain.data.synthetic import LARGEST, SMALLEST, render
from facetrain.errors import InputError, RunError
from facetrain.models import normalise

Format: TypeAlias = Literal["onnx", "safetensors"]

INPUT, OUTPUT = "input", "embedding"
BATCHES = (1, 2, 7)
"""Batch sizes at which an ONNX file is compared with PyTorch."""
TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the largest embedding component (float32 leaves about 1e-6)."""

_OPSET = 18  # the exporter's own, so nothing is converted; onnxruntime reads it since 1.14
_LARGEST_FILE = 2_000_000_000  # bytes: a protobuf message ends at 2 GiB
_MEAN_PROBE = 8  # nodes among which insightface looks for a normalisation


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote.

    Attributes:
        path: the file.
        size: bytes.
        difference: largest absolute difference of an embedding's component between onnxruntime and PyTorch; None for
            safetensors, which holds the weights as they are.
        largest: largest absolute component in that comparison, to judge ``difference`` by; None for safetensors.
    """

    path: Path
    size: int
    difference: float | None = None
    largest: float | None = None


def export(checkpoint: Path, out: Path, format: str | None = None) -> Exported:
    """Write the backbone of a checkpoint, without the classifier, to one file; complete or not at all.

    The ONNX graph takes ``input`` (n, 3, size, size) float32, RGB, scaled by ``(pixel - 127.5) / 127.5``, and gives
    ``embedding`` (n, D) float32, not L2-normalised, for any n; batch norm is in evaluation mode. The scaling is not
    part of the graph, which insightface's ``ArcFaceONNX`` recognises. (``insightface.model_zoo.get_model`` takes a
    file for a recogniser only where the size is 112 or more and a multiple of 16; the class itself takes any.) Both
    formats hold the model section of the recipe, the fingerprint and facetrain's version as metadata.

    Args:
        checkpoint: a run's folder (its newest good checkpoint is taken), a checkpoint, or a ``.safetensors`` file.
        out: the file to write; an older one is replaced, its folder is made.
        format: ``onnx`` or ``safetensors``; left out, it is taken from the suffix of ``out``.

    Raises:
        InputError: no such checkpoint, no such format, ``out`` cannot be written or lies within a checkpoint, the ONNX
            packages are not installed, or a backbone with weights that are not finite or too large for a file.
        RunError: onnxruntime does not reproduce PyTorch's embeddings; no file is left.
    """
    chosen = _format(out, format)
    source = find(checkpoint)
    _check_target(out, source)
    if chosen == "onnx":
        _require_onnx()
    backbone, model = load_backbone(source)
    about = {"fingerprint": fingerprint(source), "facetrain": facetrain.__version__}
    difference = largest = None
    if chosen == "onnx":
        content = to_onnx(backbone, model, {"model": model.model_dump_json(), **about})
        difference, largest = compare(content, backbone, model.input_size)
        with result_file(out) as growing:
            growing.write_bytes(content)
    else:
        with result_file(out) as growing:
            write_backbone(growing, backbone, model, **about)
    return Exported(out, out.stat().st_size, difference, largest)


def to_onnx(backbone: nn.Module, model: ModelConfig, about: dict[str, str]) -> bytes:
    """The backbone as the content of an ONNX file, unchecked.

    Args:
        backbone: in evaluation mode, on the CPU.
        model: for the input size.
        about: the file's metadata.

    Raises:
        InputError: too large for one file.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in backbone.state_dict().values())
    if weights > _LARGEST_FILE:
        raise InputError(
            f"the backbone has {weights / 1e9:.1f} GB of weights and an ONNX file holds 2 GB: export to .safetensors"
        )
    import onnx

    example = torch.zeros((2, 3, model.input_size, model.input_size))
    with _quiet():
        program = torch.onnx.export(
            backbone,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _forget_source(proto)
    onnx.helper.set_model_props(proto, about)
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    return content


def compare(content: bytes, backbone: nn.Module, input_size: int) -> tuple[float, float]:
    """Run an ONNX file beside the backbone it was made from, on noise and rendered faces at each of ``BATCHES``.

    Args:
        content: of the file.
        backbone: in evaluation mode, on the CPU.
        input_size: pixels a side.

    Returns:
        (largest absolute difference, largest absolute component), over all embeddings.

    Raises:
        InputError: PyTorch's own embeddings are not finite.
        RunError: the difference exceeds ``TOLERANCE`` of the largest component, or insightface would scale pixels in
            another way than the backbone expects.
    """
    import onnx
    import onnxruntime

    if insightface_scaling(onnx.load_from_string(content).graph) != (127.5, 127.5):
        raise RunError("the ONNX graph begins with a subtraction and a product, which insightface takes for a scaling")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    difference = largest = 0.0
    for batch in BATCHES:
        for images in (_noise(batch, input_size), _faces(batch, input_size)):
            normalised = normalise(torch.from_numpy(images)).contiguous()
            with torch.inference_mode():
                expected = backbone(normalised).numpy()
            if not np.isfinite(expected).all():
                raise InputError("the backbone's embeddings are not finite numbers; take an older checkpoint")
            found = session.run([OUTPUT], {INPUT: normalised.numpy()})[0]
            if found.shape != expected.shape:
                raise RunError(f"the ONNX file gives {found.shape} where PyTorch gives {expected.shape}")
            difference = float(np.fmax(difference, np.abs(found - expected).max()))
            difference = difference if np.isfinite(found).all() else float("inf")
            largest = max(largest, float(np.abs(expected).max()))
    if not difference <= TOLERANCE * largest:
        raise RunError(
            f"onnxruntime and PyTorch differ by {difference:.2g} in embeddings of up to {largest:.2g}; no file was "
            "written: export to .safetensors, or try other versions of onnx and onnxruntime"
        )
    return difference, largest


def insightface_scaling(graph: Any) -> tuple[float, float]:
    """(mean, standard deviation) by which insightface's ``ArcFaceONNX`` scales pixels for a graph, by its own rule.

    It looks at the names of the first eight nodes: a subtraction and a product mean that the graph scales by itself.
    """
    first = [node.name for node in graph.node[:_MEAN_PROBE]]
    subtracts = any(name.startswith(("Sub", "_minus")) for name in first)
    multiplies = any(name.startswith(("Mul", "_mul")) for name in first)
    return (0.0, 1.0) if subtracts and multiplies else (127.5, 127.5)


def _format(out: Path, wanted: str | None) -> Format:
    found = out.suffix.removeprefix(".").lower() if wanted is None else wanted
    for known in get_args(Format):
        if found == known:
            return known
    if wanted is None:
        raise InputError(f"{out} must end in .onnx or .safetensors, or the format be given")
    raise InputError(f"format {wanted} is not known; expected onnx or safetensors")


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"export to ONNX needs packages that are not installed: pip install {' '.join(missing)}")


def _check_target(out: Path, source: Path) -> None:
    if out.is_dir():
        raise InputError(f"{out} is a folder; expected the name of a file to write, for example {out / 'model.onnx'}")
    if out.resolve() == source.resolve() or (out.parent / MANIFEST).is_file():
        raise InputError(f"{out} would change the checkpoint {source}; choose another place")
    check_folder(out.parent, str(out))


def _forget_source(proto: Any) -> None:
    """Drop what the exporter notes about each node: source lines with this machine's paths, twice the graph's size."""
    graph = proto.graph
    for thing in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph):
        del thing.metadata_props[:]
        thing.ClearField("doc_string")
    del proto.metadata_props[:]
    proto.ClearField("doc_string")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress and its deprecations by every way there is."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(disabled)


def _noise(count: int, size: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def _faces(count: int, size: int) -> NDArray[np.uint8]:
    rendered = min(max(size, SMALLEST), LARGEST)
    return np.stack([resize(render(0, number, 0, rendered), size) for number in range(count)])
