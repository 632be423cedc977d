"""A recogniser in an ONNX file, as insightface's runtime takes it, in the place of a backbone."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facetrain.data.files import read_file
from facetrain.errors import InputError

_SCALE = 127.5
_PROBED_NODES = 8


class OnnxModel(nn.Module):
    """(n, 3, size, size) float32 in -1..1 -> (n, D) float32, through onnxruntime; on the CPU, or a GPU that it knows.

    The file's first input is (batch, 3, size, size) float32, RGB; its first output (batch, D). A fixed batch is filled
    up with zeros. Pixels reach it as ``(x - 127.5) / 127.5``; a graph that scales by itself (insightface's rule: a
    subtraction and a product among its first eight nodes) is given 0..255.

    Attributes:
        sha256: of the file.
        input_size: pixels a side; of a file that takes any size ``usual_size``.
    """

    def __init__(self, path: Path, device: torch.device, usual_size: int) -> None:
        """Load and try the file.

        Raises:
            InputError: the ``onnx`` extra is not installed, or the file is damaged or of another kind of model.
        """
        super().__init__()
        missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f"{path} needs packages that are not installed: pip install {' '.join(missing)}")
        self._path = path
        try:
            content = read_file(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._raw_pixels = _scales_itself(_graph(path, content))
        self._session = _session(path, content, device)
        first = self._session.get_inputs()[0]
        self._input, self._output = first.name, self._session.get_outputs()[0].name
        shape = [n if isinstance(n, int) and n > 0 else None for n in first.shape]
        if first.type != "tensor(float)" or len(shape) != 4 or shape[1] not in (3, None) or shape[2] != shape[3]:
            raise InputError(
                f"{path} takes {first.type} {tuple(first.shape)}; expected float32 images (batch, 3, size, size)"
            )
        self._batch = shape[0]
        self.input_size: int = shape[2] or usual_size
        self._try()

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings on the images' device."""
        pixels = (images * _SCALE + _SCALE).round() if self._raw_pixels else images
        array = pixels.cpu().contiguous().numpy()
        step = self._batch or max(1, len(array))
        parts = []
        for start in range(0, len(array), step):
            piece = array[start : start + step]
            if self._batch and len(piece) < step:
                piece = np.concatenate([piece, np.zeros((step - len(piece), *piece.shape[1:]), np.float32)])
            parts.append(self._session.run([self._output], {self._input: piece})[0][: len(array) - start])
        return torch.from_numpy(np.concatenate(parts)).to(images.device)

    def _try(self) -> None:
        """One image through it, so that what does not fit is known before anything is decoded."""
        black = np.zeros((self._batch or 1, 3, self.input_size, self.input_size), np.float32)
        try:
            found = self._session.run([self._output], {self._input: black})[0]
        except Exception as error:  # onnxruntime has a class for each of its states
            raise InputError(
                f"{self._path} does not take (batch, 3, {self.input_size}, {self.input_size}): {_line(error)}"
            ) from None
        shape: tuple[int, ...] = getattr(found, "shape", ())
        kind = getattr(found, "dtype", type(found).__name__)
        if len(shape) != 2 or shape[0] != len(black) or kind != np.float32:
            raise InputError(f"{self._path} gives {kind} {shape}; expected float32 embeddings (batch, D)")


def _graph(path: Path, content: bytes) -> Any:
    import onnx
    from onnx.external_data_helper import uses_external_data

    try:
        graph = onnx.load_model_from_string(content).graph
    except Exception as error:  # protobuf's, whatever class it has
        raise InputError(f"{path} cannot be read as ONNX: {_line(error)}") from None
    if any(uses_external_data(tensor) for tensor in graph.initializer):
        raise InputError(
            f"{path} keeps its weights in other files, which its hash would not cover: save it as one file "
            "(onnx.save_model without save_as_external_data)"
        )
    return graph


def _scales_itself(graph: Any) -> bool:
    names = [node.name for node in graph.node[:_PROBED_NODES]]
    return all(any(name.startswith(starts) for name in names) for starts in (("Sub", "_minus"), ("Mul", "_mul")))


def _session(path: Path, content: bytes, device: torch.device) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # onnxruntime has a class for each of its states
        raise InputError(f"{path} cannot be run by onnxruntime: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
