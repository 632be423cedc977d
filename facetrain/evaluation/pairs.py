"""Verification on pairs, as LFW and its kin are scored: insightface's .bin files in, accuracy and TPR@FPR out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facetrain.atomic import result_file
from facetrain.data.encoded import Encoded
from facetrain.errors import InputError
from facetrain.evaluation.facex_zoo import facex_zoo_accuracy
from facetrain.evaluation.scores import FEW, FPRS, Cell, Folds, Rule, fpr_text, ten_fold_accuracy, tpr_at_fpr
from facetrain.evaluation.unpickle import load_pairs

Protocol = Literal["insightface", "facex-zoo"]
"""Whose way of judging the ten folds."""


@dataclass(frozen=True, eq=False)
class PairSet(Encoded):
    """2N encoded images and whether pair i, images 2i and 2i + 1, shows one person; can be embedded like any images.

    ``name`` is the file's without its suffix, ``folder`` the name of the folder around it, "" where there is none.
    """

    name: str
    images: Sequence[bytes]
    same: NDArray[np.bool_]
    folder: str = ""

    def __len__(self) -> int:
        """Number of images, 2N."""
        return len(self.images)

    def encoded(self, i: int) -> bytes:
        """The encoded bytes of image i."""
        return self.images[i]

    def where(self, i: int) -> str:
        """Where image i stands, for messages."""
        return f"{self.name} image {i} (pair {i // 2})"


class DistinctImages(Encoded):
    """The images of a pair set without repetitions: LFW's 12,000 are 7,701, CFP-FP's 14,000 are 7,000.

    ``row`` (2N,) int64 says for every image of the set which of the distinct ones it is. The bytes stay the set's.
    """

    def __init__(self, pairs: PairSet) -> None:
        """Compare the images of ``pairs``, byte by byte."""
        self.pairs = pairs
        place: dict[bytes, int] = {}
        self.row = np.array([place.setdefault(image, len(place)) for image in pairs.images], np.int64)
        self._first: list[int] = np.unique(self.row, return_index=True)[1].tolist()

    def __len__(self) -> int:
        """Number of distinct images."""
        return len(self._first)

    def encoded(self, i: int) -> bytes:
        """The encoded bytes of distinct image i."""
        return self.pairs.encoded(self._first[i])

    def where(self, i: int) -> str:
        """Where distinct image i stands first."""
        return self.pairs.where(self._first[i])


@dataclass(frozen=True, eq=False)
class Verification:
    """The result on one pair set, with the protocol that gave it.

    ``scores`` are cosines (N,) float64; ``folds`` come from squared L2 distances of the normalised embeddings.
    """

    folds: Folds
    cells: tuple[Cell, ...]
    scores: NDArray[np.float64]
    same: NDArray[np.bool_]
    flip: bool
    rule: Rule
    by: Protocol = "insightface"
    images: int = 0
    """How many distinct ones the pairs have; 0: nobody counted."""

    @property
    def decided(self) -> tuple[Cell, ...]:
        """``cells`` without the rates that not even one impostor pair decides; the largest rate stays in any case."""
        impostors = int((~self.same).sum())
        largest = max((cell.fpr for cell in self.cells), default=0.0)
        return tuple(cell for cell in self.cells if cell.fpr * impostors >= 1 or cell.fpr == largest)

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the folds, 0..1."""
        return self.folds.mean

    @property
    def accuracy_std(self) -> float:
        """Population standard deviation of the folds' accuracies; FaceX-Zoo's way: the standard error of their mean."""
        return self.folds.std

    @property
    def threshold(self) -> float:
        """The mean of the folds' thresholds, as a cosine."""
        return 1 - float(self.folds.thresholds.mean()) / 2

    @property
    def protocol(self) -> str:
        """What was done, in one line, to stand beside the numbers."""
        image = "embedding of image + mirror image" if self.flip else "embedding of the image, no flip"
        return f"{image}; accuracy over {len(self.folds.accuracies)} folds in file order; FPR rule: {self.rule}"

    def line(self) -> str:
        """The headline numbers in one line, for a console."""
        rates = ", ".join(
            f"{cell.tpr:.2%}{'*' if cell.few else ''} at {fpr_text(cell.fpr)}" for cell in self.cells if cell.impostors
        )
        few = f" (* decided by fewer than {FEW} impostor pairs)" if "*" in rates else ""
        return f"accuracy {self.accuracy:.2%} ± {self.accuracy_std:.2%}" + (f", TPR {rates}{few}" if rates else "")

    def record(self) -> dict[str, Any]:
        """The numbers as JSON types, for logs: rates as text keys (``1e-3``)."""
        return {
            "accuracy": self.accuracy,
            "accuracy_std": self.accuracy_std,
            "pairs": len(self.same),
            "tpr": {fpr_text(cell.fpr): cell.tpr for cell in self.cells},
            "impostors": {fpr_text(cell.fpr): cell.impostors for cell in self.cells},
            "flip": self.flip,
            "fpr_rule": self.rule,
        }

    def save(self, path: Path) -> None:
        """Write scores, same, folds and protocol as .npz, whole or not at all; :func:`read_verification` reads it.

        Raises:
            InputError: it cannot be written.
        """
        with result_file(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                scores=self.scores,
                same=self.same,
                fold_accuracies=self.folds.accuracies,
                fold_thresholds=self.folds.thresholds,
                fprs=np.array([cell.fpr for cell in self.cells]),
                flip=np.array(self.flip),
                rule=np.array(self.rule),
                images=np.array(self.images),
            )


def verify(
    embeddings: NDArray,
    same: ArrayLike,
    *,
    flip: bool = True,
    fprs: Sequence[float] = FPRS,
    rule: Rule = "strict",
    by: Protocol = "insightface",
) -> Verification:
    """Score a pair set from its embeddings, as insightface's verification or FaceX-Zoo's does.

    Args:
        embeddings: (2N, D) real, not normalised; pair i is rows 2i and 2i + 1. The mirror images' are added already.
        same: (N,) bool.
        flip: whether they were added; only noted in the result.
        fprs: rates of the table.
        rule: how a rate picks its point, see :func:`facetrain.evaluation.scores.tpr_at_fpr`.
        by: how the accuracy is judged, see :func:`facetrain.evaluation.scores.ten_fold_accuracy` and
            :func:`facetrain.evaluation.facex_zoo.facex_zoo_accuracy`.

    Raises:
        InputError: sizes do not fit, an embedding is not finite, or a kind of pairs is missing.
    """
    labels = np.asarray(same)
    if embeddings.ndim != 2 or len(embeddings) != 2 * len(labels):
        raise InputError(f"{len(labels)} pairs need (2 x {len(labels)}, D) embeddings, not {embeddings.shape}")
    rows = embeddings.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows /= np.where(norms == 0, 1, norms)  # a zero embedding stays zero, as scikit-learn's normalize leaves it
    first, second = rows[0::2], rows[1::2]
    scores = np.einsum("nd,nd->n", first, second)
    cells = tpr_at_fpr(scores, labels, fprs, rule)
    if by == "facex-zoo":
        folds = facex_zoo_accuracy(scores, labels)
    else:
        folds = ten_fold_accuracy(np.square(first - second).sum(axis=1), labels)
    return Verification(folds, tuple(cells), scores, labels.astype(np.bool_), flip, rule, by)


def read_verification(path: Path) -> Verification:
    """Read what :meth:`Verification.save` wrote; the table is computed from the scores.

    Raises:
        InputError: not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {key: file[key] for key in file.files}
        scores, same = held["scores"].astype(np.float64), held["same"].astype(np.bool_)
        rule: Rule = "nearest" if str(held["rule"]) == "nearest" else "strict"
        fprs = [float(fpr) for fpr in held["fprs"]]
        flip, images = bool(held["flip"]), int(held.get("images", 0))
        each = held["fold_accuracies"]
        folds = Folds(float(each.mean()), float(each.std()), each, held["fold_thresholds"])
    except Exception as error:  # a zip archive of arrays can be damaged in any number of ways
        raise InputError(f"{path} is not a readable verification result: {_reason(error)}") from None
    return Verification(folds, tuple(tpr_at_fpr(scores, same, fprs, rule)), scores, same, flip, rule, images=images)


def read_bin(path: Path) -> PairSet:
    """Read insightface's .bin: a pickle of (2N encoded images, N booleans), of Python 2 or 3; it runs no code.

    Raises:
        InputError: missing, damaged, or holding anything else, by name.
    """
    try:
        with open(path, "rb") as file:
            encoded, labels = load_pairs(file)
    except OSError as error:
        hint = "; facetrain data pack writes it with --held-out" if _never_written(error, path) else ""
        raise InputError(f"pair set {path} cannot be read: {error.strerror}{hint}") from None
    except Exception as error:  # a damaged pickle raises anything from KeyError to RecursionError
        raise InputError(
            f"pair set {path} is not insightface's .bin, a pickle of (2N encoded images, N booleans): {_reason(error)}"
        ) from None
    if not len(labels) or len(encoded) != 2 * len(labels):
        raise InputError(
            f"pair set {path} holds {len(encoded)} images and {len(labels)} booleans; expected two images for each"
        )
    return PairSet(path.stem, encoded, labels, folder_name(path))


def folder_name(path: Path) -> str:
    """The name of the folder a file lies in, also where ``path`` does not say it."""
    return Path(os.path.abspath(path)).parent.name


def names_apart(sets: Sequence[tuple[str, str]]) -> list[str]:
    """Names to keep results by, fit for file names: the sets' own, where two are equal with the folder's in front.

    Args:
        sets: (folder's name, own name) of each.

    Raises:
        InputError: two sets have the same name even so.
    """
    own = [name for _, name in sets]
    names = [f"{folder}_{name}" if folder and own.count(name) > 1 else name for folder, name in sets]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two pair sets are named {name}; results are kept by that name, so rename one file")
    return names


def _never_written(error: OSError, path: Path) -> bool:
    return isinstance(error, FileNotFoundError) and path.name == "heldout.bin"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:120]
    if isinstance(error, EOFError) or "exhausted" in text:
        return "it is cut short or damaged; copy it again"
    known = isinstance(error, (ValueError, TypeError)) or type(error).__name__ == "UnpicklingError"
    return text if known and text else f"damaged ({type(error).__name__})"
