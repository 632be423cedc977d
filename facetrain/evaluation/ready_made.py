"""Embeddings made before, in a model's place: anybody's .npy, or the .npz that ``facetrain embed`` writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.checkpoints.files import sha256
from facetrain.errors import InputError

AS_GIVEN = "as the features are"
"""What stands for ``flip`` beside a result where nobody knows whether the mirrored image is in the features."""
_EXPECTED = "expected an .npy of (N, D) numbers or an .npz of facetrain embed"
_LONGEST = 80  # of NumPy's reasons
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ReadyMade:
    """Features of N images: ``rows`` (N, D) real, row i of image i, not finite where the image was unreadable.

    ``fingerprint`` is the SHA-256 of the model where the file says it, else of the file. ``flip``: whether the mirrored
    image is in them; None: nobody knows. ``normalised``: known to be scaled to length 1.
    """

    rows: NDArray
    fingerprint: str
    flip: bool | None = None
    normalised: bool = False


def read_ready_made(path: Path) -> ReadyMade:
    """The features of a file; those of an .npy are a read-only memory map.

    Raises:
        InputError: it is damaged, or holds something else.
    """
    try:
        held = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(held, np.ndarray):
            return ReadyMade(_matrix(held, path), sha256(path))
        with held:
            model = str(held["model"])
            if not _SHA256.fullmatch(model):
                raise ValueError(f"its model is {model!r:.20}, no SHA-256")
            rows = _matrix(held["embeddings"], path)
            return ReadyMade(rows, model, bool(held["flip"]), bool(held["normalised"]))
    except InputError:
        raise
    except Exception as error:  # whatever NumPy and zipfile make of a damaged file
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _reason(error)
        raise InputError(f"features {path} cannot be read: {reason}; {_EXPECTED}") from None


def _reason(error: Exception) -> str:
    """NumPy's reason, short; it takes what is no array for a pickle, and says how to load it."""
    text = " ".join(str(error).split())
    if "pickle" in text.lower():
        return "it holds no array of numbers, perhaps a pickle"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _matrix(features: NDArray, path: Path) -> NDArray:
    if features.ndim != 2 or features.dtype.kind != "f" or not features.size:
        raise InputError(
            f"features {path} are {features.shape} of {features.dtype}; expected (N, D) floating-point numbers"
        )
    return features
