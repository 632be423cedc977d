"""Head and tail by the training set, and the angular spread, against loops written out."""

from __future__ import annotations

import numpy as np
import pytest

from facetrain.data.images import encode_jpeg
from facetrain.data.record_writer import RecordWriter
from facetrain.errors import InputError
from facetrain.evaluation.class_groups import head_and_tail, open_labelled, smallest_count, spread


def listed(path, labels):
    """A list of photos that nobody opens."""
    path.write_text("".join(f"{i}.jpg {label}\n" for i, label in enumerate(labels)))
    return path


def record(folder, sizes):
    folder.mkdir()
    with RecordWriter(folder / "train.rec", (16, 16)) as writer:
        for label in np.repeat(np.arange(len(sizes)), sizes).tolist():
            writer.write(label, encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    return folder / "train.rec"


def folder(path, sizes):
    for name, size in sizes.items():
        (path / name).mkdir(parents=True)
        for photo in range(size):
            (path / name / f"{photo}.jpg").write_bytes(encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    return path


def split(data, train, threshold=None):
    groups, used = head_and_tail(data, open_labelled(data), train, threshold)
    return {group.name: group.which.tolist() for group in groups}, used


def test_labels_of_a_record_are_classes_of_another(tmp_path):
    train = record(tmp_path / "train", [2, 7, 3, 7])
    data = listed(tmp_path / "data.txt", [3, 0, 2, 1, 0, 2])
    assert split(data, train, 3) == ({"head": [0, 3], "tail": [1, 2, 4, 5]}, 3)
    assert split(data, train.parent, 2) == ({"head": [0, 2, 3, 5], "tail": [1, 4]}, 2)
    assert split(data, train, 7) == ({"tail": [0, 1, 2, 3, 4, 5]}, 7)
    assert split(data, train, 0) == ({"head": [0, 1, 2, 3, 4, 5]}, 0)
    # The median of 2, 7, 3 and 7, whatever the number of test images.
    assert split(data, train) == ({"head": [0, 3], "tail": [1, 2, 4, 5]}, 5)


def test_the_median_is_that_of_the_people_in_the_set(tmp_path):
    train = record(tmp_path / "train", [2, 9, 3, 7])
    data = listed(tmp_path / "data.txt", [0, 0, 2, 3, 3, 3])
    assert split(data, train) == ({"head": [3, 4, 5], "tail": [0, 1, 2]}, 3)


def test_people_of_folders_are_matched_by_name(tmp_path):
    train = folder(tmp_path / "train", {"ann": 1, "bob": 5, "cleo": 2, "dan": 6})
    data = folder(tmp_path / "data", {"bob": 1, "cleo": 2})  # whose labels are 0 and 1
    assert split(data, train, 3) == ({"head": [0], "tail": [1, 2]}, 3)


def test_labels_that_say_nothing_about_the_training_set_are_refused(tmp_path):
    train = listed(tmp_path / "train.txt", [0, 0, 2])
    for labels in ([0, 5], [0, 1]):  # no such class, and one without images
        data = listed(tmp_path / "data.txt", labels)
        with pytest.raises(
            InputError, match=rf"1\.jpg: label {labels[1]} is no class of .*train\.txt, which has 2 with images; 1 of 2"
        ):
            split(data, train)
    with pytest.raises(InputError, match=r"data\.txt: .*1\.jpg has no label; write `path label` a line"):
        split(listed(tmp_path / "data.txt", [0, -1]), train)
    people = folder(tmp_path / "people", {"ann": 2, "zoe": 1})
    with pytest.raises(InputError, match="cannot be compared: one is a folder of people"):
        split(people, train)
    with pytest.raises(InputError, match="cannot be compared: one is a folder of people"):
        split(train, people)
    with pytest.raises(InputError, match=r"zoe of .*people is nobody in .*fewer, as 1 of 2 people"):
        split(people, folder(tmp_path / "fewer", {"ann": 2, "bob": 1}))


def _spread_by_definition(rows, labels, which, each):
    angles = []
    for person in np.unique(labels[which]):
        own = [i for i in which if labels[i] == person][:each]
        if len(own) < each:
            continue
        unit = [rows[i].astype(np.float64) / np.linalg.norm(rows[i].astype(np.float64)) for i in own]
        for i in range(each):
            mean = np.mean([unit[j] for j in range(each) if j != i], axis=0)
            angles.append(np.arccos(unit[i] @ mean / np.linalg.norm(mean)))
    return np.mean(angles), np.std(angles), len(angles) // each


@pytest.mark.parametrize("each", [2, 3, 5])
def test_the_spread_is_the_leave_one_out_angle(each):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 30, 150)
    rows = (3 * rng.normal(size=(30, 20))[labels] + rng.normal(size=(150, 20))).astype(np.float32)
    which = np.flatnonzero(rng.random(150) < 0.8)
    found = spread(rows, labels, which, each)
    mean, std, people = _spread_by_definition(rows, labels, which, each)
    assert (found.mean, found.std) == (pytest.approx(mean, abs=1e-12), pytest.approx(std, abs=1e-12))
    assert (found.people, found.each) == (people, each)


def test_the_spread_of_known_angles():
    turned = np.deg2rad([0, 60, 0, 90, 45, 45])
    rows = np.stack([np.cos(turned), np.sin(turned)], axis=1) * np.arange(1, 7)[:, None]  # lengths do not matter
    labels = np.array([0, 0, 1, 1, 2, 2])
    found = spread(rows, labels, np.arange(6), 2)
    assert found.mean == pytest.approx(np.deg2rad((60 + 90 + 0) / 3), abs=1e-7)
    assert spread(rows, labels, np.arange(2), 2).std == pytest.approx(0, abs=1e-12)


def test_the_spread_does_not_see_a_persons_number_of_images():
    """Five or fifty images of one cloud: leaving one out and taking as many makes the spreads equal."""
    rng = np.random.default_rng(1)
    labels = np.concatenate([np.repeat(np.arange(100), 5), np.repeat(np.arange(100, 200), 50)])
    rows = rng.normal(size=(200, 32))[labels] + 0.4 * rng.normal(size=(len(labels), 32))
    few, many = (spread(rows, labels, np.flatnonzero(side), 5) for side in (labels < 100, labels >= 100))
    assert few.mean == pytest.approx(many.mean, rel=0.02)


def test_blocks_of_people_do_not_matter(monkeypatch):
    rng = np.random.default_rng(2)
    rows, labels = rng.normal(size=(60, 8)), np.arange(60) % 12
    whole = spread(rows, labels, np.arange(60), 4)
    monkeypatch.setattr("facetrain.evaluation.class_groups._AT_ONCE", 1)
    assert spread(rows, labels, np.arange(60), 4) == whole


def test_nobody_with_as_many_images_has_no_spread():
    found = spread(np.ones((3, 2)), np.arange(3), np.arange(3), 2)
    assert np.isnan([found.mean, found.std]).all()
    assert found.people == 0


def test_a_missing_direction_is_a_right_angle():
    rows = np.array([[1.0, 0], [0, 0]])
    assert spread(rows, np.zeros(2, int), np.arange(2), 2).mean == pytest.approx(np.pi / 2)


def test_smallest_count():
    assert smallest_count(np.array([3, 3, 1, 3, 7, 7])) == 2
    assert smallest_count(np.array([3, 3, 1, 3])) == 3
    assert smallest_count(np.arange(4)) == 0
