from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from facetrain.data.demo import UNSEEN, write_demo
from facetrain.data.images import decode
from facetrain.data.recordio import RecordFile
from facetrain.data.synthetic import Identity, Nuisance, render
from facetrain.errors import InputError
from facetrain.evaluation.pairs import read_bin

SMALL = {"people": 6, "head": 3, "size": 24, "held_out": 5, "held_out_images": 6, "seed": 3, "pairs": 40}


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


@pytest.mark.parametrize("size", [24, 48, 97, 112, 256])
def test_sizes_and_type(size: int) -> None:
    image = render(0, 1, 2, size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert image.max() > 100
    assert image.std() > 10


def test_many_photos_at_full_difficulty_have_contrast() -> None:
    for photo in range(60):
        image = render(11, photo % 7, photo, 32, 1.5)
        assert image.std() > 3, photo


def test_call_after_other_calls_is_equal() -> None:
    first = render(5, 3, 1, 40)
    render(5, 4, 0, 40)
    Identity.draw.cache_clear()
    np.testing.assert_array_equal(render(5, 3, 1, 40), first)


def test_other_process_is_equal() -> None:
    code = (
        "import sys, hashlib; from facetrain.data.synthetic import render\n"
        "print(hashlib.sha256(b''.join(render(9, i, 7 * i, 48).tobytes() for i in (6, 3, 0))).hexdigest())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == digest(*(render(9, i, 7 * i, 48) for i in (6, 3, 0)))


def test_seed_identity_and_image_each_change_the_photo() -> None:
    photos = [render(*key, 48) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({digest(photo) for photo in photos}) == 4


def test_without_nuisance_a_person_has_one_face_and_people_differ() -> None:
    names = [f.name for f in dataclasses.fields(Nuisance) if "mean" in f.metadata]
    calm = [Nuisance.draw(0, 4, image, 0.0) for image in range(3)]
    assert all(getattr(photo, name) == getattr(calm[0], name) for photo in calm for name in names)
    assert calm[0].glasses == calm[0].hat == calm[0].noise == 0
    faces = [render(0, person, 0, 48, 0.0)[8:40, 12:36].astype(float) for person in range(12)]
    again = [render(0, person, 1, 48, 0.0)[8:40, 12:36].astype(float) for person in range(12)]
    same = [np.abs(a - b).mean() for a, b in zip(faces, again, strict=True)]
    other = [np.abs(faces[i] - faces[i - 1]).mean() for i in range(12)]
    assert max(same) < min(other)


def test_traits_are_a_continuum_of_independent_numbers() -> None:
    table = np.array([dataclasses.astuple(Identity.draw(0, person)) for person in range(400)])
    assert table.shape[1] >= 25
    correlation = np.corrcoef(table.T) - np.eye(table.shape[1])
    assert np.abs(correlation).max() < 0.25
    assert all(len(np.unique(column)) == 400 for column in table.T)
    for column, field in zip(table.T, dataclasses.fields(Identity), strict=True):
        assert column.mean() == pytest.approx(field.metadata["mean"], abs=0.25 * field.metadata["spread"])
        assert column.std() == pytest.approx(field.metadata["spread"], rel=0.2)


def test_events_happen_as_often_as_they_say() -> None:
    photos = [Nuisance.draw(2, person, image) for person in range(40) for image in range(25)]
    glasses = np.array([photo.glasses for photo in photos])
    assert (glasses > 0).mean() == pytest.approx(0.2, abs=0.05)
    assert glasses.min() == 0
    assert glasses.max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 0, 20), "size = 20 is not in 24..256"),
        ((0, 0, 0, 257), "size = 257"),
        ((0, -1, 0, 48), "identity = -1"),
        ((0, 0, 0, 48, -0.5), "difficulty = -0.5"),
        ((0, 0, 0, 48, float("nan")), "difficulty = nan"),
    ],
)
def test_wrong_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        render(*arguments)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    write_demo(out, **SMALL, images_head=4, images_tail=2, workers=1)
    return out


def test_training_set_is_long_tailed(demo: Path) -> None:
    records = RecordFile(demo / "train.rec")
    assert records.num_classes == 6
    assert np.bincount(records.labels).tolist() == [4, 4, 4, 2, 2, 2]
    assert (demo / "property").read_text() == "6,24,24\n"
    # The JPEG of a class is that class's person and photo.
    shown = decode(records.image_bytes(13)).astype(float)
    assert np.abs(shown - render(3, 3, 1, 24)).mean() < 12
    assert records.labels[13] == 3


def test_held_out_people_are_others(demo: Path) -> None:
    records = RecordFile(demo / "heldout" / "train.rec")
    assert np.bincount(records.labels).tolist() == [6] * 5
    shown = decode(records.image_bytes(7)).astype(float)
    assert np.abs(shown - render(3, 7, 1, 24)).mean() < 12


@pytest.mark.parametrize("name", ["heldout", "head", "tail"])
def test_pair_sets(demo: Path, name: str) -> None:
    pairs = read_bin(demo / f"{name}.bin")
    assert pairs.same.tolist() == ([True] * 2 + [False] * 2) * 10
    train = RecordFile(demo / "train.rec")
    trained = {bytes(train.image_bytes(i)) for i in range(train.num_images)}
    assert not trained & set(pairs.images)
    assert all(pairs.images[2 * i] != pairs.images[2 * i + 1] for i in range(40))


def test_pairs_tell_the_truth(demo: Path) -> None:
    by_image = {}
    for person in range(3, 6):
        for photo in range(UNSEEN, UNSEEN + 8):
            by_image[person, photo] = render(3, person, photo, 24).astype(float)
    pairs = read_bin(demo / "tail.bin")

    def who(encoded: bytes) -> int:
        image = decode(encoded).astype(float)
        return min(by_image, key=lambda key: np.abs(by_image[key] - image).mean())[0]

    assert [who(pairs.images[2 * i]) == who(pairs.images[2 * i + 1]) for i in range(40)] == pairs.same.tolist()


def test_workers_do_not_matter(demo: Path, tmp_path: Path) -> None:
    write_demo(tmp_path, **SMALL, images_head=4, images_tail=2, workers=2)
    names = ["train.rec", "train.idx", "property", "heldout.bin", "head.bin", "tail.bin", "heldout/train.rec"]
    assert all((tmp_path / name).read_bytes() == (demo / name).read_bytes() for name in names)


def test_older_files_stay(demo: Path) -> None:
    before = (demo / "train.rec").read_bytes()
    with pytest.raises(InputError, match="is there already"):
        write_demo(demo, **SMALL, images_head=4, images_tail=2, workers=1)
    assert (demo / "train.rec").read_bytes() == before


def test_replacing_leaves_nothing_of_a_packed_set(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "heldout").mkdir()
    for name in ("train.rec", "train.idx", "names.txt", "classes.csv", "heldout/names.txt"):
        (tmp_path / name).write_text("old")
    write_demo(tmp_path, **SMALL, images_head=4, images_tail=2, workers=1, overwrite=True)
    found = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {str(path.relative_to(demo)): path.read_bytes() for path in demo.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 300}, "size = 300"),
        ({"head": 6}, "head = 6 of people = 6"),
        ({"held_out": 1}, "held_out = 1"),
        ({"difficulty": -1.0}, "difficulty = -1"),
        ({"pairs": 40, "held_out_images": 1}, "5 people with 5 photos give 0 pairs of one person"),
        ({"images_tail": 0}, "images_tail = 0"),
        ({"images_head": UNSEEN + 1}, "images_head = 1000001 and .* must be in 1..1000000"),
    ],
)
def test_impossible_demos(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_demo(tmp_path / "demo", **{**SMALL, **change})
    assert not (tmp_path / "demo").exists()
