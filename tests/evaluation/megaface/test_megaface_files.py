"""The devkit's files: written as its own tools read them, and refused in one line where they are damaged."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from facetrain.errors import InputError
from facetrain.evaluation.megaface.files import (
    FeatureFiles,
    FeatureMatrix,
    distractor_lists,
    feature_path,
    open_matrix,
    read_feature,
    read_image_list,
    read_noises,
    write_feature,
)


def write_list(path, paths, people=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"path": paths} | ({"id": people} if people else {})))
    return path


def test_a_feature_file_is_a_header_of_four_numbers_and_floats(tmp_path):
    feature = np.array([0.25, -1, 3], np.float32)
    path = feature_path(tmp_path, "Adam_B/Adam_B_1.png", "r100")
    assert path == tmp_path / "Adam_B" / "Adam_B_1.png_r100.bin"
    path.parent.mkdir()
    write_feature(path, feature)
    assert path.read_bytes() == struct.pack("<4i3f", 3, 1, 4, 5, 0.25, -1, 3)
    np.testing.assert_array_equal(read_feature(path), feature)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\0" * 7, "cut short: 7 bytes, fewer than its header has"),
        (struct.pack("<4i2f", 3, 1, 4, 5, 1, 2), "has 24 bytes where 3 numbers take 28; it is cut short or damaged"),
        (struct.pack("<4i4f", 3, 1, 4, 5, 1, 2, 3, 4), "has 32 bytes where 3 numbers take 28"),
        (struct.pack("<4i", 3, 1, 8, 6), "starts with 3, 1, 8, 6; expected D, 1, 4, 5"),
        (struct.pack("<4i", -1, 1, 4, 5), "starts with -1, 1, 4, 5"),
        (struct.pack("<4i", 2**31 - 1, 1, 4, 5), "with D up to 65536"),
    ],
)
def test_damaged_features_are_one_line(tmp_path, content, told):
    (tmp_path / "a_x.bin").write_bytes(content)
    with pytest.raises(InputError, match=rf"feature {tmp_path}/a_x\.bin .*{told}"):
        FeatureFiles(tmp_path, ["a"], "x")


def test_missing_features_and_features_of_another_model_are_named(tmp_path):
    with pytest.raises(InputError, match=r"a_x\.bin cannot be read: No such file or directory; the list names its"):
        FeatureFiles(tmp_path, ["a"], "x")
    with pytest.raises(InputError, match=r"nowhere is not a folder; expected one with PATH_x\.bin"):
        FeatureFiles(tmp_path / "nowhere", ["a"], "x")
    for name, size in (("a", 4), ("b", 4), ("c", 5)):
        write_feature(tmp_path / f"{name}_x.bin", np.arange(size, dtype=np.float32))
    files = FeatureFiles(tmp_path, ["a", "b", "c"], "x")
    assert (len(files), files.dim) == (3, 4)
    np.testing.assert_array_equal(files.rows(np.array([1, 0])), [np.arange(4)] * 2)
    with pytest.raises(InputError, match=r"c_x\.bin holds 5 numbers and .*a_x\.bin 4; all features must come from one"):
        files.rows(np.array([1, 2]))


def test_a_matrix_is_read_only_where_it_is_asked(tmp_path):
    rows = np.arange(20, dtype=np.float16).reshape(5, 4)
    np.save(tmp_path / "m.npy", rows)
    found = open_matrix(tmp_path / "m.npy", list("abcde"))
    assert isinstance(found.rows(np.arange(1, 3)), np.memmap)
    np.testing.assert_array_equal(found.rows(np.arange(1, 3)), rows[1:3])
    np.testing.assert_array_equal(found.rows(np.array([4, 0])), rows[[4, 0]])
    assert found.where(1) == f"{tmp_path}/m.npy row 1 (b)"
    with pytest.raises(InputError, match=r"m\.npy has 5 rows and the list 2 images; row i must be image i of it"):
        open_matrix(tmp_path / "m.npy", ["a", "b"])
    with pytest.raises(InputError, match=r"\(4,\) float32; expected a row of real numbers per image"):
        FeatureMatrix(np.zeros(4, np.float32), "m")
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "short.npy").write_bytes((tmp_path / "m.npy").read_bytes()[:-3])
    for name in ("o.npy", "short.npy", "none.npy"):
        with pytest.raises(InputError, match=rf"{name} cannot be read as a \.npy matrix"):
            open_matrix(tmp_path / name)


def test_lists_are_the_devkits(tmp_path):
    names = ["Adam_B/Adam_B_1.png", "Adam_B/Adam_B_2.png", "Eva_C/Eva_C..9.png"]
    found = read_image_list(write_list(tmp_path / "f.json", names, ["Adam_B", "Adam_B", "Eva_C"]), people=True)
    assert (found.paths, found.people) == (names, ["Adam_B", "Adam_B", "Eva_C"])
    for size, number in ((10, 1), (2, 1), (10, 2)):
        write_list(tmp_path / f"megaface_features_list.json_{size}_{number}", [f"1/u@N0/{i}.jpg" for i in range(size)])
    lists = distractor_lists(tmp_path, 1)
    assert list(lists) == [2, 10]
    assert read_image_list(lists[10], people=False).paths[9] == "1/u@N0/9.jpg"
    assert distractor_lists(tmp_path, 3) == distractor_lists(tmp_path / "none", 1) == {}


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/etc/passwd", "\\\\host\\a", "a\\..\\b", "", "a\0b"])
def test_a_list_cannot_leave_its_folder(tmp_path, path):
    with pytest.raises(InputError, match="leaves the folder of images; expected a relative path without"):
        read_image_list(write_list(tmp_path / "l.json", ["fine/a.jpg", path]), people=False)


def test_lists_that_do_not_fit_are_one_line(tmp_path):
    with pytest.raises(
        InputError, match=r"json_10_1: 9 paths where its name says 10; use the devkit's own list and rem"
    ):
        read_image_list(write_list(tmp_path / "megaface_features_list.json_10_1", list("abcdefghi")), people=False)
    with pytest.raises(InputError, match="2 paths and 1 ids; each image needs its person"):
        read_image_list(write_list(tmp_path / "l", ["a", "b"], ["p"]), people=True)
    with pytest.raises(InputError, match="b is listed twice"):
        read_image_list(write_list(tmp_path / "l", ["a", "b", "c", "b", "a"]), people=False)
    with pytest.raises(InputError, match="the list is empty"):
        read_image_list(write_list(tmp_path / "l", []), people=False)
    with pytest.raises(InputError, match='no "id" with a list of texts'):
        read_image_list(write_list(tmp_path / "l", ["a"]), people=True)
    for text, told in (
        ('{"path": [1]}', 'no "path" with a list of texts'),
        ("[]", "is not the devkit's JSON"),
        ("{", "cannot be read: Expecting property name"),
        ("[" * 100_000, "cannot be read"),
    ):
        (tmp_path / "l").write_text(text)
        with pytest.raises(InputError, match=told):
            read_image_list(tmp_path / "l", people=False)
    with pytest.raises(InputError, match="none cannot be read: No such file"):
        read_image_list(tmp_path / "none", people=False)


def test_noise_lists_have_comments_and_tabs(tmp_path):
    path = tmp_path / "megaface_noises.txt"
    path.write_text("# why\nsomebody\t1/u@N0/a b.jpg\n\n1/u@N0/c.jpg\nx\ty\tz\n")
    assert read_noises(path) == {"1/u@N0/a b.jpg", "1/u@N0/c.jpg", "y"}
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(
        InputError, match=r"noise list .* cannot be read: .*; expected an image a line, or use --clean none"
    ):
        read_noises(path)
