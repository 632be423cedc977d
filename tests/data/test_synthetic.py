from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from facetrain.data.synthetic import Identity, Nuisance, render
from facetrain.errors import InputError


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
