import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetrain.data.dataset import open_images
from facetrain.data.images import encode_jpeg
from facetrain.data.longtail import choose_classes, choose_images, subset
from facetrain.data.record_writer import RecordWriter
from facetrain.errors import InputError


def test_classes_are_ranked_by_size_and_ties_by_id():
    counts = np.array([5, 9, 7, 9, 0, 5, 6])
    assert choose_classes(counts, 2, 3, 5).tolist() == [1, 3, 2, 6, 0]
    assert choose_classes(counts, 3, 3, 5).tolist() == [1, 3, 2, 6, 0, 5]
    assert choose_classes(counts, 6, 0, 99).tolist() == [1, 3, 2, 6, 0, 5]


@pytest.mark.parametrize(
    ("head", "tail", "images", "message"),
    [
        (3, 4, 1, r"head 3 \+ tail 4 = 7 classes, and 6 classes have images: lower"),
        (2, 4, 6, r"= 6 classes, but only 4 have 6 images or more \(class 5 has 5\): lower tail_images to 5"),
        (1, 0, 1, "make 1 classes; at least 2"),
        (-1, 5, 1, "head is -1; expected at least 0"),
        (2, 2, 0, "tail_images is 0; expected at least 1"),
    ],
)
def test_impossible_wishes(head, tail, images, message):
    with pytest.raises(InputError, match=message):
        choose_classes(np.array([5, 9, 7, 9, 0, 5, 6]), head, tail, images)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(2, 12), min_size=3, max_size=20),
    head=st.integers(0, 8),
    keep=st.integers(1, 2),
    seed=st.integers(0, 2**40),
)
def test_images_of_the_subset(counts, head, keep, seed):
    counts = np.array(counts)
    head = min(head, len(counts) - 2)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    classes = choose_classes(counts, head, len(counts) - head - 1, keep)
    chosen, new = choose_images(labels, classes, head, keep, seed)
    assert len(set(chosen.tolist())) == len(chosen)
    np.testing.assert_array_equal(labels[chosen], classes[new])
    assert (np.diff(new) >= 0).all()
    kept = np.bincount(new, minlength=len(classes))
    np.testing.assert_array_equal(kept[:head], counts[classes[:head]])
    assert (kept[head:] == keep).all()
    assert all((np.diff(chosen[new == c]) > 0).all() for c in range(len(classes)))


def test_every_tail_image_has_its_chance():
    labels = np.repeat([0, 1], [30, 10])
    hits = np.zeros(40)
    for seed in range(400):
        chosen, _ = choose_images(labels, np.array([0, 1]), 1, 5, seed)
        hits[chosen] += 1
    assert (hits[:30] == 400).all()
    assert hits[30:].min() > 150  # 200 expected
    assert hits[30:].max() < 250


@pytest.fixture
def whole(tmp_path):
    """Classes of 2, 4, 3, 6 and 1 images, every image another colour."""
    sizes = [2, 4, 3, 6, 1]
    with RecordWriter(tmp_path / "whole" / "train.rec", image_size=8) as writer:
        for number, label in enumerate(np.repeat(np.arange(5), sizes).tolist()):
            writer.write(label, encode_jpeg(np.full((8, 8, 3), 15 * number, np.uint8)))
    return tmp_path / "whole" / "train.rec"


def test_subset_copies_images_as_they_are(whole, tmp_path):
    report = subset(whole, tmp_path / "out", head=2, tail=2, tail_images=2)
    assert (report.head_classes, report.head_images, report.smallest_head) == (2, 10, 4)
    assert (report.tail_classes, report.tail_images) == (2, 4)
    old, new = open_images(whole), open_images(tmp_path / "out")
    assert new.num_classes == 4
    assert new.labels.tolist() == [0] * 6 + [1] * 4 + [2] * 2 + [3] * 2
    assert (tmp_path / "out" / "property").read_text().split() == ["4,8,8"]
    where = {bytes(old.encoded(i)): i for i in range(len(old))}
    sources = [where[bytes(new.encoded(i))] for i in range(14)]
    assert old.labels[sources].tolist() == [3] * 6 + [1] * 4 + [2] * 2 + [0] * 2
    with (tmp_path / "out" / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["new_class"], row["old_class"], row["images"], row["part"]) for row in rows] == [
        ("0", "3", "6", "head"),
        ("1", "1", "4", "head"),
        ("2", "2", "2", "tail"),
        ("3", "0", "2", "tail"),
    ]


def test_subset_replaces_nothing_silently(whole, tmp_path):
    subset(whole, tmp_path / "out", head=2, tail=2, tail_images=2)
    with pytest.raises(InputError, match=r"train\.rec is there already: choose another folder, or .*--force"):
        subset(whole, tmp_path / "out", head=1, tail=3, tail_images=1)
    subset(whole, tmp_path / "out", head=1, tail=3, tail_images=1, overwrite=True)
    assert len(open_images(tmp_path / "out")) == 9
    before = whole.read_bytes()
    with pytest.raises(InputError, match="is the data set to read: choose another folder"):
        subset(whole, whole.parent, head=2, tail=2, tail_images=2, overwrite=True)
    assert whole.read_bytes() == before


def test_subset_of_a_folder_of_people(whole, tmp_path):
    images = open_images(whole)
    for i in range(len(images)):
        photo = tmp_path / "photos" / f"p{images.labels[i]}" / f"{i}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(images.encoded(i))
    for overwrite in (False, True):
        report = subset(tmp_path / "photos", tmp_path / "out", head=2, tail=2, tail_images=2, overwrite=overwrite)
        assert (report.head_images, report.tail_images) == (10, 4)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "classes.csv",
        "property",
        "train.crc32",
        "train.idx",
        "train.rec",
    ]


def test_subset_removes_what_an_older_set_left(whole, tmp_path):
    out = tmp_path / "out"
    (out / "heldout").mkdir(parents=True)
    held = ("heldout/train.rec", "heldout/train.idx", "heldout/train.crc32")
    for name in ("names.txt", "heldout.bin", "head.bin", "tail.bin", *held, "mine"):
        (out / name).write_text("old")
    with pytest.raises(InputError, match=r"names\.txt is there already: .*--force"):
        subset(whole, out, head=2, tail=2, tail_images=2)
    with pytest.raises(InputError, match="lower"):
        subset(whole, out, head=5, tail=5, overwrite=True)
    assert len(list(out.rglob("*"))) == 9
    subset(whole, out, head=2, tail=2, tail_images=2, overwrite=True)
    left = sorted(path.name for path in out.rglob("*"))
    assert left == ["classes.csv", "mine", "property", "train.crc32", "train.idx", "train.rec"]


def test_bad_first_image_is_named(tmp_path):
    with RecordWriter(tmp_path / "whole" / "train.rec") as writer:
        for label in (0, 0, 1):
            writer.write(label, b"")
    with pytest.raises(InputError, match=r"^train\.rec record 1 at byte 40: the image is empty: 0 bytes$"):
        subset(tmp_path / "whole", tmp_path / "out", head=1, tail=1, tail_images=1)
