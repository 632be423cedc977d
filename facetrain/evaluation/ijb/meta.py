"""The meta folder of IJB-B and IJB-C as insightface hands it out: images of templates, landmarks, pairs, galleries.

```
ROOT/meta/ijbc_face_tid_mid.txt          1.jpg 1 69544                      image, template, medium
ROOT/meta/ijbc_name_5pts_score.txt       1.jpg 46.060 62.026 ... 0.999      image, five landmarks, detector score
ROOT/meta/ijbc_template_pair_label.txt   1 11065 1                          two templates, one subject (1) or two (0)
ROOT/meta/ijbc_1N_gallery_G1.csv         TEMPLATE_ID,SUBJECT_ID,FILENAME... a line per image; IJB-B: S1, S2
ROOT/meta/ijbc_1N_probe_mixed.csv        the same
ROOT/loose_crop/1.jpg
```
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facetrain.errors import InputError
from facetrain.evaluation.ijb.text import lines_of, whole_numbers, wrong_line

PAIR_LIST = "template_pair_label.txt"
_TABLE = 1 << 24  # template numbers up to which a table says their rows
_IMAGE_LINE, _POINTS_LINE = "IMAGE TEMPLATE MEDIUM", "IMAGE X1 Y1 ... X5 Y5 SCORE"
_PAIR_LINE, _CSV_LINE = "TEMPLATE TEMPLATE 0|1", "TEMPLATE_ID,SUBJECT_ID,..."


@dataclass(frozen=True)
class Dataset:
    """What IJB-B and IJB-C call their files."""

    name: str
    stem: str
    galleries: tuple[str, str]

    def file(self, root: Path, rest: str) -> Path:
        """A file of the meta folder."""
        return root / "meta" / f"{self.stem}_{rest}"


IJBB, IJBC = Dataset("IJB-B", "ijbb", ("S1", "S2")), Dataset("IJB-C", "ijbc", ("G1", "G2"))


@dataclass(frozen=True)
class Faces:
    """N images: names, (N, 5, 2) landmarks in pixels, (N,) detector scores, and (N,) numbers of template and medium."""

    names: list[str]
    landmarks: NDArray[np.float32]
    detector: NDArray[np.float32]
    templates: NDArray[np.int64]
    media: NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Rows of templates to compare, (P,) int32 each: the first ``genuine`` pairs show one subject, the others two.

    Within both kinds ``first`` rises, which makes scoring cheap; the order of pairs means nothing to the protocol.
    """

    first: NDArray[np.int32]
    second: NDArray[np.int32]
    genuine: int


@dataclass(frozen=True)
class Enrolled:
    """Templates with their subjects: (n,) rows of templates, rising, and (n,) numbers of subjects."""

    rows: NDArray[np.int64]
    subjects: NDArray[np.int64]


def find_root(root: Path, dataset: Dataset) -> Path:
    """The folder that holds ``meta``: ``root``, or the folder IJBC (IJBB) in it.

    Raises:
        InputError: neither does.
    """
    for place in (root, root / dataset.stem.upper()):
        if (place / "meta").is_dir():
            return place
    raise InputError(
        f"{root} has no folder meta; expected {dataset.name} as insightface hands it out: meta/, loose_crop/"
    )


def read_faces(root: Path, dataset: Dataset) -> Faces:
    """Both lists of images, which must name the same images in the same order.

    Raises:
        InputError: a list is missing, a line is wrong, the lists differ, or an image is twice in one template.
    """
    names, templates, media = _images(dataset.file(root, "face_tid_mid.txt"))
    path = dataset.file(root, "name_5pts_score.txt")
    also, numbers = _landmarks(path)
    if names != also:
        both = zip(names, also, strict=False)
        line = next((i for i, (a, b) in enumerate(both, start=1) if a != b), min(len(names), len(also)) + 1)
        here, there = ((some[line - 1] if line <= len(some) else "the end") for some in (names, also))
        raise InputError(
            f"{path} and {dataset.stem}_face_tid_mid.txt do not name the same images in the same order: line {line} "
            f"has {there} and {here}; take both from one release"
        )
    _refuse_twice(names, templates, media, dataset.file(root, "face_tid_mid.txt"))
    return Faces(names, numbers[:, :10].reshape(-1, 5, 2), numbers[:, 10], templates, media)


def read_pairs(root: Path, dataset: Dataset, ids: NDArray[np.int64]) -> Pairs:
    """The pairs of the 1:1 protocol; ``ids`` (T,) are the numbers of the templates that have images, rising.

    Raises:
        InputError: missing, a line is wrong, a template has no images, or a kind of pairs is missing.
    """
    path = dataset.file(root, PAIR_LIST)
    numbers = whole_numbers(path, 3, _PAIR_LINE)
    other = np.flatnonzero(numbers[:, 2] > 1)
    if len(other):
        line = int(other[0])
        raise InputError(f"{path}:{line + 1}: the label is {numbers[line, 2]}; expected 1 (one subject) or 0 (two)")
    first, second = (_rows(numbers[:, column], ids, path, dataset) for column in range(2))
    order = np.argsort(first, kind="stable")
    same = numbers[order, 2] == 1
    order = np.concatenate((order[same], order[~same]))
    genuine = int(same.sum())
    if genuine in (0, len(order)):
        raise InputError(f"{path}: all {len(order):,} pairs have the label {int(genuine > 0)}; both kinds are needed")
    return Pairs(first[order], second[order], genuine)


def read_enrolled(path: Path, dataset: Dataset, ids: NDArray[np.int64]) -> Enrolled:
    """A gallery or the probes of the 1:N protocol: a CSV with a heading and a line per image of each template.

    Raises:
        InputError: missing, a line is wrong, a template has no images or two subjects.
    """
    subject_of: dict[int, int] = {}
    for lines, number in lines_of(path, _CSV_LINE):
        for line, text in enumerate(lines, start=number):
            words = text.split(b",", 2)
            if line == 1:
                if words[0].strip().isdigit():
                    raise wrong_line(path, 1, text, f"a heading, {_CSV_LINE}")
                continue
            if len(words) < 2 or not all(0 < len(word) <= 9 and word.isdigit() for word in map(bytes.strip, words[:2])):
                raise wrong_line(path, line, text, _CSV_LINE)
            template, subject = int(words[0]), int(words[1])
            if subject_of.setdefault(template, subject) != subject:
                known = subject_of[template]
                raise InputError(f"{path}:{line}: template {template} shows subject {subject}, before that {known}")
    if not subject_of:
        raise InputError(f"{path} has a heading and nothing else; expected lines {_CSV_LINE}")
    templates = np.array(sorted(subject_of), np.int64)
    rows = _rows(templates, ids, path, dataset, numbered=False).astype(np.int64)
    return Enrolled(rows, np.array([subject_of[one] for one in templates.tolist()], np.int64))


def _images(path: Path) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    names: list[str] = []
    numbers: list[NDArray[np.int64]] = []
    for lines, number in lines_of(path, _IMAGE_LINE):
        words = [line.split() for line in lines]
        for line, row in enumerate(words, start=number):
            if len(row) != 3 or not (row[1].isdigit() and row[2].isdigit() and len(row[1]) <= 9 and len(row[2]) <= 9):
                raise wrong_line(path, line, lines[line - number], _IMAGE_LINE)
        names += [_text(row[0], path, number + i) for i, row in enumerate(words)]
        numbers.append(np.array([(int(row[1]), int(row[2])) for row in words], np.int64))
    both = np.concatenate(numbers)
    return names, both[:, 0].copy(), both[:, 1].copy()


def _landmarks(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Names, and (N, 11) landmarks and scores."""
    names: list[str] = []
    numbers: list[NDArray[np.float32]] = []
    for lines, number in lines_of(path, _POINTS_LINE):
        words = [line.split() for line in lines]
        for line, row in enumerate(words, start=number):
            if len(row) != 12:
                raise wrong_line(path, line, lines[line - number], _POINTS_LINE)
        names += [_text(row[0], path, number + i) for i, row in enumerate(words)]
        try:
            values = np.array([row[1:] for row in words]).astype(np.float32)
        except ValueError:
            values = np.array([[_number(word) for word in row[1:]] for row in words], np.float32)
        good = np.isfinite(values).all(axis=1) & (values[:, 10] >= 0)
        good &= (np.ptp(values[:, 0:10:2], axis=1) > 0) | (np.ptp(values[:, 1:10:2], axis=1) > 0)
        if not good.all():
            at = int(np.argmin(good))
            need = f"{_POINTS_LINE}, finite numbers, landmarks that are not all one point, a score of at least 0"
            raise wrong_line(path, number + at, lines[at], need)
        numbers.append(values)
    return names, np.concatenate(numbers)


def _number(word: bytes) -> float:
    try:
        return float(word)
    except ValueError:
        return np.nan


def _text(word: bytes, path: Path, line: int) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError:
        raise wrong_line(path, line, word, "an image's name in UTF-8") from None


def _refuse_twice(names: list[str], templates: NDArray[np.int64], media: NDArray[np.int64], path: Path) -> None:
    """InputError where an image is twice in one template: it would count twice, or is of two media."""
    if len(set(names)) == len(names):
        return
    seen: dict[tuple[str, int], int] = {}
    for line, key in enumerate(zip(names, templates.tolist(), strict=True)):
        before = seen.setdefault(key, line)
        if before != line:
            raise InputError(
                f"{path}:{line + 1}: {key[0]} is in template {key[1]} already (line {before + 1}), as medium "
                f"{media[before]}, here as {media[line]}; an image is in a template once"
            )


def _rows(
    numbers: NDArray, ids: NDArray[np.int64], path: Path, dataset: Dataset, numbered: bool = True
) -> NDArray[np.int32]:
    """Rows of templates given by number; ``numbered``: element i stands on line i + 1."""
    if ids[-1] < _TABLE:
        table = np.full(_TABLE if numbers.max() >= ids[-1] else int(ids[-1]) + 1, -1, np.int32)
        table[ids] = np.arange(len(ids))
        rows = table.take(numbers, mode="clip")
        rows[numbers >= len(table)] = -1
    else:
        rows = np.searchsorted(ids, numbers).clip(max=len(ids) - 1).astype(np.int32)
        rows[ids[rows] != numbers] = -1
    if (rows < 0).any():
        at = int(np.argmax(rows < 0))
        where = f"{path}:{at + 1}" if numbered else f"{path}"
        raise InputError(f"{where}: template {numbers[at]} has no image in {dataset.stem}_face_tid_mid.txt")
    return rows
