"""Reading through mxnet and decoding through NVIDIA DALI, for those who have them. Both are optional.

mxnet reads the whole record itself; DALI decodes the bytes that our reader finds, so the order stays ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from facetrain.data.encoded import Encoded
from facetrain.data.images import Buffer, check_size, resize
from facetrain.data.recordio import RecordFile
from facetrain.errors import InputError

if TYPE_CHECKING:
    import torch

# NumPy took these away in 1.24; mxnet 1.9.1, the last, reads them at import.
_NUMPY_ALIASES: dict[str, type] = {"bool": bool, "int": int, "float": float, "object": object, "complex": complex}
_INSTALL_MXNET = (
    "in an environment of its own run 'pip install mxnet==1.9.1 \"numpy>=1.26,<2\"', or set data.reader to native"
)


def import_mxnet() -> Any:
    """The mxnet module, also beside NumPy 1.24 to 1.26, whose removed names it is given back first.

    Raises:
        InputError: mxnet is not installed or NumPy is too new for it.
    """
    if int(np.__version__.split(".")[0]) >= 2:
        raise InputError(f"data.reader mxnet: mxnet does not run beside NumPy {np.__version__}; {_INSTALL_MXNET}")
    if "mxnet" not in sys.modules:
        for name, alias in _NUMPY_ALIASES.items():
            if name not in vars(np):
                setattr(np, name, alias)
    try:
        import mxnet
    except ImportError as error:
        raise InputError(f"data.reader mxnet: {error}; {_INSTALL_MXNET}") from None
    return mxnet


class MxnetImages(Encoded):
    """The images of a .rec as mxnet reads and decodes them, numbered as :class:`RecordFile` does. Picklable.

    Which record is which image, and its label, come from our index: mxnet has no notion of insightface's record 0.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path`` with the .idx beside it; InputError where that fails or mxnet is missing."""
        import_mxnet()
        self._records = RecordFile(path)
        self.path = self._records.path
        self.labels = self._records.labels
        self.num_classes = self._records.num_classes
        self._open()

    def _open(self) -> None:
        recordio = import_mxnet().recordio
        self._reader = recordio.MXIndexedRecordIO(str(self.path.with_suffix(".idx")), str(self.path), "r")

    def __getstate__(self) -> RecordFile:
        return self._records

    def __setstate__(self, records: RecordFile) -> None:
        self._records, self.path = records, records.path
        self.labels, self.num_classes = records.labels, records.num_classes
        self._open()

    def __len__(self) -> int:
        """Number of images."""
        return len(self._records)

    def where(self, i: int) -> str:
        """File, record number and byte of image ``i``, for messages."""
        return self._records.where(i)

    def check_unchanged(self) -> None:
        """FileChangedError where the .rec or its .idx is no longer what was opened."""
        self._records.check_unchanged()

    def encoded(self, i: int) -> bytes:
        """The encoded image ``i`` as mxnet unpacks it; InputError where it cannot or sees another label."""
        mxnet = import_mxnet()
        if self._records.checksums is not None:
            self._records.encoded(i)  # which compares them
        try:
            header, encoded = mxnet.recordio.unpack(self._reader.read_idx(self._records.record_number(i)))
        except Exception as error:  # mxnet's own errors and struct's share no base
            raise InputError(f"{self.where(i)}: mxnet cannot read it ({_first_line(error)})") from None
        label = float(np.ravel(header.label)[0])
        if label != self.labels[i]:
            raise InputError(f"{self.where(i)}: mxnet reads label {label:g} and data.reader native {self.labels[i]}")
        return bytes(encoded)

    def decode_image(self, i: int) -> NDArray[np.uint8]:
        """Image ``i``, (H, W, 3) RGB uint8, decoded by ``mx.image.imdecode``.

        Raises:
            InputError: mxnet cannot read or decode it; names the record.
        """
        encoded = self.encoded(i)
        try:
            check_size(encoded)
            return np.asarray(import_mxnet().image.imdecode(encoded, to_rgb=1, flag=1).asnumpy(), np.uint8)
        except Exception as error:
            raise InputError(f"{self.where(i)}: mxnet cannot decode it ({_first_line(error)})") from None

    def decode(self, i: int, out: NDArray[np.uint8]) -> None:
        """Image ``i`` as mxnet decodes it, stretched to (size, size, 3) where it has another shape."""
        np.copyto(out, resize(self.decode_image(i), len(out)))


def import_dali() -> Any:
    """The DALI module.

    Raises:
        InputError: DALI is not installed.
    """
    try:
        from nvidia import dali
    except ImportError as error:
        raise InputError(
            f"data.reader dali: {error}; run 'pip install nvidia-dali-cuda120' or set data.reader to native"
        ) from None
    return dali


class UndecodableError(InputError):
    """DALI cannot decode the image at ``position`` of a batch."""

    def __init__(self, message: str, position: int) -> None:
        """The line for the user, and which image."""
        super().__init__(message)
        self.position = position


class DaliDecoder:
    """Decodes batches of images through DALI, resized to a square where they have another size.

    Holds a DALI pipeline with its threads, so make one per process, after forking; it cannot be pickled.
    """

    def __init__(self, size: int, device_id: int | None, threads: int) -> None:
        """Load DALI.

        Args:
            size: pixels a side of the result.
            device_id: the GPU that decodes (``device="mixed"``), None for the CPU.
            threads: DALI's CPU threads, at least one.

        Raises:
            InputError: DALI is not installed.
        """
        self._dali = import_dali()
        self._size, self._device_id, self._threads = size, device_id, threads
        self._capacity = 0
        self._pipeline: Any = None

    def _build(self, capacity: int) -> None:
        """A pipeline for batches of up to ``capacity`` images."""
        from nvidia.dali import fn, types

        pipeline = self._dali.Pipeline(capacity, self._threads, self._device_id, prefetch_queue_depth=1)
        with pipeline:
            encoded = fn.external_source(name="encoded", device="cpu", dtype=types.UINT8, ndim=1)
            device = "cpu" if self._device_id is None else "mixed"
            images = fn.decoders.image(encoded, device=device, output_type=types.RGB)
            # Of an image of this very size each pixel stays what it is.
            images = fn.resize(images, size=[self._size, self._size], interp_type=types.INTERP_LINEAR, antialias=True)
            pipeline.set_outputs(images)
        pipeline.build()
        self._pipeline, self._capacity = pipeline, capacity

    def decode(
        self, encoded: Sequence[Buffer], where: Callable[[int], str] = "image {} of the batch".format
    ) -> torch.Tensor:
        """(n, size, size, 3) RGB uint8, on the GPU or in main memory, in the order given.

        Args:
            encoded: the image files, at least one.
            where: the name, in messages, of the image at a position of ``encoded``.

        Raises:
            UndecodableError: one of them cannot be decoded; names the first.
        """
        try:
            return self._run(encoded)
        except RuntimeError:
            for position, image in enumerate(encoded):
                try:
                    self._run([image])
                except RuntimeError as error:
                    reason = f"{where(position)}: DALI cannot decode it ({_dali_reason(error)})"
                    raise UndecodableError(reason, position) from None
            raise

    def _run(self, encoded: Sequence[Buffer]) -> torch.Tensor:
        import torch

        if len(encoded) > self._capacity:
            self._build(len(encoded))
        try:
            self._pipeline.feed_input("encoded", [np.frombuffer(image, np.uint8) for image in encoded])
            (images,) = self._pipeline.run()
        except RuntimeError:
            self._capacity = 0  # a pipeline that failed once fails ever after
            raise
        # A copy, as DALI writes the next batch over this one.
        return torch.utils.dlpack.from_dlpack(images.as_tensor()).clone()


def _dali_reason(error: RuntimeError) -> str:
    """DALI puts the cause behind a trace of the pipeline's definition."""
    return _first_line(RuntimeError(str(error).rpartition("encountered:")[2]))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
