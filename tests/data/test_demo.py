from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facetrain.data.demo import FURTHER, UNSEEN, write_demo
from facetrain.data.images import decode
from facetrain.data.recordio import RecordFile
from facetrain.data.synthetic import render
from facetrain.errors import InputError
from facetrain.evaluation.pairs import read_bin

SMALL = {"people": 6, "head": 3, "size": 24, "held_out": 5, "held_out_images": 6, "seed": 3, "pairs": 40}


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
    shown = decode(records.encoded(13)).astype(float)
    assert np.abs(shown - render(3, 3, 1, 24)).mean() < 12
    assert records.labels[13] == 3


def test_held_out_people_are_others(demo: Path) -> None:
    records = RecordFile(demo / "heldout" / "train.rec")
    assert np.bincount(records.labels).tolist() == [6] * 5
    shown = decode(records.encoded(7)).astype(float)
    assert np.abs(shown - render(3, 7, 1, 24)).mean() < 12


@pytest.mark.parametrize("name", ["heldout", "head", "tail"])
def test_pair_sets(demo: Path, name: str) -> None:
    pairs = read_bin(demo / f"{name}.bin")
    assert pairs.same.tolist() == ([True] * 2 + [False] * 2) * 10
    train = RecordFile(demo / "train.rec")
    trained = {bytes(train.encoded(i)) for i in range(len(train))}
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


def test_new_photos_of_trained_people_have_their_training_classes(demo: Path, tmp_path: Path) -> None:
    report = write_demo(tmp_path, **SMALL, images_head=4, images_tail=2, seen_images=3, workers=1)
    assert report.seen == tmp_path / "seen" / "train.rec"
    seen = RecordFile(report.seen)
    assert seen.labels.tolist() == [person for person in range(6) for _ in range(3)]
    shown = decode(seen.encoded(3 * 4 + 2)).astype(float)
    assert np.abs(shown - render(3, 4, FURTHER + 2, 24)).mean() < 12
    photos = {bytes(seen.encoded(i)) for i in range(len(seen))}
    assert len(photos) == len(seen)
    for name in ("head", "tail"):
        assert not photos & {bytes(image) for image in read_bin(tmp_path / f"{name}.bin").images}
    train = RecordFile(report.train)
    assert not photos & {bytes(train.encoded(i)) for i in range(len(train))}
    # The rest of the set is what it is without them.
    for name in ("train.rec", "heldout.bin", "head.bin", "tail.bin", "heldout/train.rec"):
        assert (tmp_path / name).read_bytes() == (demo / name).read_bytes()
    (tmp_path / "train.rec").unlink()
    for name in ("property", "heldout.bin", "head.bin", "tail.bin", "heldout/train.rec", "heldout/train.idx"):
        (tmp_path / name).unlink()
    (tmp_path / "heldout" / "property").unlink()
    with pytest.raises(InputError, match=r"seen/train\.rec is there already"):
        write_demo(tmp_path, **SMALL, workers=1)
    write_demo(tmp_path, **SMALL, images_head=4, images_tail=2, workers=1, overwrite=True)
    assert not (tmp_path / "seen").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 300}, "size = 300"),
        ({"head": 6}, "head = 6 of people = 6"),
        ({"held_out": 1}, "held_out = 1"),
        ({"difficulty": -1.0}, "difficulty = -1"),
        ({"pairs": 40, "held_out_images": 1}, "5 people with 5 photos give 0 pairs of one person"),
        ({"images_tail": 0}, "images_tail = 0"),
        ({"seen_images": -1}, "seen_images = -1 must be in 0"),
        ({"images_head": UNSEEN + 1}, "images_head = 1000001 and .* must be in 1..1000000"),
    ],
)
def test_impossible_demos(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_demo(tmp_path / "demo", **{**SMALL, **change})
    assert not (tmp_path / "demo").exists()
