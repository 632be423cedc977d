"""The meta folder: what is read, and one line for whatever is wrong with it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from ijb_toys import POINTS_OF_A_FACE, random_ijb, write_ijb

from facetrain.errors import InputError
from facetrain.evaluation.ijb import meta as ijb_meta
from facetrain.evaluation.ijb.meta import IJBB, IJBC, find_root, read_enrolled, read_faces, read_pairs
from facetrain.evaluation.ijb.run import read_plan

IMAGES = [("1.jpg", 7, 70, 0.9), ("2.jpg", 7, 70, 0.5), ("3.jpg", 3, 70, 1)]


def test_images_with_their_landmarks(tmp_path):
    faces = read_faces(write_ijb(tmp_path, IMAGES, [(7, 3, 1), (3, 3, 0)]), IJBC)
    assert faces.names == ["1.jpg", "2.jpg", "3.jpg"]
    assert faces.templates.tolist() == [7, 7, 3]
    assert faces.media.tolist() == [70, 70, 70]
    np.testing.assert_allclose(faces.detector, [0.9, 0.5, 1])
    np.testing.assert_allclose(faces.landmarks[1], np.array(POINTS_OF_A_FACE.split(), float).reshape(5, 2))


def test_pairs_are_sorted_by_kind_and_row(tmp_path):
    _, written = random_ijb(tmp_path)
    ids = np.unique(read_faces(tmp_path, IJBC).templates)
    pairs = read_pairs(tmp_path, IJBC, ids)
    same = np.arange(len(pairs.first)) < pairs.genuine
    found = sorted(zip(ids[pairs.first].tolist(), ids[pairs.second].tolist(), same.astype(int).tolist(), strict=True))
    assert found == sorted(map(tuple, np.array(written).tolist()))
    for part in (slice(pairs.genuine), slice(pairs.genuine, None)):
        assert (np.diff(pairs.first[part]) >= 0).all()
    assert pairs.first.dtype == np.int32


def test_large_template_numbers_need_no_table(tmp_path, monkeypatch):
    random_ijb(tmp_path)
    ids = np.unique(read_faces(tmp_path, IJBC).templates)
    by_table = read_pairs(tmp_path, IJBC, ids)
    monkeypatch.setattr(ijb_meta, "_TABLE", 20)
    by_search = read_pairs(tmp_path, IJBC, ids)
    np.testing.assert_array_equal(by_search.first, by_table.first)
    np.testing.assert_array_equal(by_search.second, by_table.second)


@pytest.mark.parametrize("table", [20, 1 << 24])
@pytest.mark.parametrize("unknown", [1, 4, 99, 999_999_999])
def test_a_pair_of_an_unknown_template(tmp_path, monkeypatch, table, unknown):
    monkeypatch.setattr(ijb_meta, "_TABLE", table)
    write_ijb(tmp_path, [("1.jpg", 3, 1, 1), ("2.jpg", 7, 1, 1), ("3.jpg", 30, 1, 1)], [(3, 7, 1), (unknown, 7, 0)])
    with pytest.raises(InputError, match=rf"label\.txt:2: template {unknown} has no image in ijbc_face_tid_mid"):
        read_pairs(tmp_path, IJBC, np.array([3, 7, 30]))


def test_lists_of_people(tmp_path):
    root = write_ijb(tmp_path, IMAGES, [], galleries=([(7, 2)], [(3, 1), (7, 2)]), probes=[(3, 1)])
    both = read_enrolled(root / "meta" / "ijbc_1N_gallery_G2.csv", IJBC, np.array([3, 7]))
    assert both.rows.tolist() == [0, 1]
    assert both.subjects.tolist() == [1, 2]


def test_ijb_b_has_names_of_its_own(tmp_path):
    random_ijb(tmp_path / "IJBB", stem="ijbb", names=("S1", "S2"))
    root = find_root(tmp_path, IJBB)
    assert root == tmp_path / "IJBB"
    assert find_root(root, IJBB) == root
    assert IJBB.galleries == ("S1", "S2")
    assert len(read_faces(root, IJBB).names)
    with pytest.raises(InputError, match=r"has no folder meta; expected IJB-C as insightface hands it out"):
        find_root(tmp_path, IJBC)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("face_tid_mid", "2.jpg 7 70", "2.jpg 7", r"tid_mid\.txt:2: '2\.jpg 7'; expected IMAGE TEMPLATE MEDIUM"),
        ("face_tid_mid", "2.jpg 7 70", "2.jpg 7 x", r"tid_mid\.txt:2: '2\.jpg 7 x'; expected"),
        ("face_tid_mid", "2.jpg 7 70", "2.jpg 7 70 1", r"tid_mid\.txt:2: .*; expected"),
        ("face_tid_mid", "2.jpg 7 70", "1.jpg 3 70", "same images in the same order: line 2 has 2.jpg and 1.jpg"),
        ("face_tid_mid", "3.jpg 3 70\n", "", "same images in the same order: line 3 has 3.jpg and the end"),
        ("name_5pts_score", " 0.5\n", "\n", r"5pts_score\.txt:2: .*; expected IMAGE X1 Y1"),
        ("name_5pts_score", " 0.5\n", " nan\n", r"5pts_score\.txt:2: .*finite numbers"),
        ("name_5pts_score", " 0.5\n", " high\n", r"5pts_score\.txt:2: .*finite numbers"),
        ("name_5pts_score", " 0.5\n", " -0.5\n", r"5pts_score\.txt:2: .*a score of at least 0"),
        ("name_5pts_score", POINTS_OF_A_FACE + " 0.5", "5 " * 10 + "0.5", r"score\.txt:2: .*not all one point"),
        ("name_5pts_score", "2.jpg", "\udcff.jpg", r"score\.txt:2: .*an image's name in UTF-8"),
    ],
)
def test_wrong_lists_of_images(tmp_path, file, old, new, message):
    write_ijb(tmp_path, IMAGES, [])
    path = tmp_path / "meta" / f"ijbc_{file}.txt"
    text = path.read_text()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message) as error:
        read_faces(tmp_path, IJBC)
    assert "\n" not in str(error.value)


def test_an_image_twice_in_a_template(tmp_path):
    again = [*IMAGES, ("2.jpg", 3, 70, 1)]
    assert len(read_faces(write_ijb(tmp_path / "a", again, []), IJBC).names) == 4  # another template may have it too
    with pytest.raises(
        InputError, match=r"txt:5: 2\.jpg is in template 7 already \(line 2\), as medium 70, here as 71"
    ):
        read_faces(write_ijb(tmp_path / "b", [*again, ("2.jpg", 7, 71, 1)], []), IJBC)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(7, 3, 1), (3, 7, 2)], r"label\.txt:2: the label is 2; expected 1 \(one subject\) or 0"),
        ([(7, 3, 1), (3, 7, 1)], r"all 2 pairs have the label 1; both kinds are needed"),
        ([(7, 3, 0)], r"all 1 pairs have the label 0"),
        ([(7, 3, 0), (7, 3, "")], r"label\.txt:2: '7 3'; expected TEMPLATE TEMPLATE 0\|1"),
        ([], r"label\.txt cannot be read: it is empty"),
    ],
)
def test_wrong_pairs(tmp_path, pairs, message):
    write_ijb(tmp_path, IMAGES, pairs)
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path, IJBC, np.array([3, 7]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TEMPLATE_ID,SUBJECT_ID\n7,1\n7,2\n", r"csv:3: template 7 shows subject 2, before that 1"),
        ("TEMPLATE_ID,SUBJECT_ID\n7\n", r"csv:2: '7'; expected TEMPLATE_ID,SUBJECT_ID"),
        ("TEMPLATE_ID,SUBJECT_ID\n7,\n", r"csv:2: '7,'; expected"),
        ("TEMPLATE_ID,SUBJECT_ID\n7,1.5,x\n", r"csv:2: "),
        ("7,1\n", r"csv:1: '7,1'; expected a heading"),
        ("TEMPLATE_ID,SUBJECT_ID\n", "has a heading and nothing else"),
        ("TEMPLATE_ID,SUBJECT_ID\n8,1\n", "template 8 has no image in ijbc_face_tid_mid"),
    ],
)
def test_wrong_lists_of_people(tmp_path, text, message):
    path = tmp_path / "people.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_enrolled(path, IJBC, np.array([3, 7]))


def test_missing_lists(tmp_path):
    random_ijb(tmp_path)
    read_plan(tmp_path, IJBC, read_faces(tmp_path, IJBC), "both")
    for path in sorted((tmp_path / "meta").iterdir()):
        held = path.read_bytes()
        path.unlink()
        missing = f"{re.escape(path.name)} cannot be read: No such file|lacks .*{re.escape(path.name)}.*--task 1:"
        with pytest.raises(InputError, match=missing):
            read_plan(tmp_path, IJBC, read_faces(tmp_path, IJBC), "both")
        path.write_bytes(held)
