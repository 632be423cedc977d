"""Maps of people: always the same, people together, and the numbers beside them right."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from made_up_leap import write_map

from facetrain.evaluation import leap_maps
from facetrain.evaluation.rundir import read_map


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return read_map(write_map(tmp_path_factory.mktemp("maps"), 7, 0.8))


def test_layout_is_always_the_same_and_keeps_people_together(before):
    points = leap_maps.layout(before.embeddings, before.labels)
    assert points.shape == (len(before.labels), 2)
    np.testing.assert_array_equal(points, leap_maps.layout(before.embeddings, before.labels))
    distances = np.linalg.norm(points[:, None] - points, axis=2) + np.diag(np.full(len(points), np.inf))
    assert (before.labels[distances.argmin(1)] == before.labels).mean() > 0.98


def test_what_cannot_be_placed_is_left_out(before):
    alike = replace(before, embeddings=np.repeat(before.embeddings[:1], len(before.labels), 0))
    few = replace(before, **{key: getattr(before, key)[:3] for key in ("embeddings", "labels", "head", "images")})
    assert leap_maps.people_maps([("alike", alike), ("few", few)], "test") == []
    four = {key: getattr(before, key)[[0, 1, 30, 199]] for key in ("embeddings", "labels", "head", "images")}
    ((title, drawn, _),) = leap_maps.people_maps([("four", replace(before, **four))], "test")
    assert title == "four"
    assert [name for name in ("H1", "H2", "T1") if f">{name}<" in drawn] == ["H1", "H2", "T1"]


def test_people_are_named_by_their_images_and_coloured_alike_in_all_maps(before):
    names, colours = leap_maps._people([before])
    assert [names[7 * person] for person in range(16)] == [f"{kind}{i}" for kind in "HT" for i in range(1, 9)]
    other = replace(before, labels=before.labels[::-1], head=before.head[::-1], images=before.images[::-1])
    later = replace(before, labels=before.labels + 7, head=np.ones_like(before.head), images=before.images + 100)
    assert leap_maps._people([before, other]) == (names, colours)
    both, of_both = leap_maps._people([before, later])
    assert len(set(both.values())) == 17
    for letter in "HT":
        mine = [of_both[label] for label in both if both[label].startswith(letter)]
        assert len(set(mine)) == len(mine)
    nobody, _ = leap_maps._people([replace(before, head=np.zeros_like(before.head))])
    assert set(nobody.values()) == {f"P{i}" for i in range(1, 17)}


def test_angles_beside_a_map_are_those_of_a_slow_count(before):
    rows = [row.astype(np.float64) for row in before.embeddings]
    angle = [[math.degrees(math.acos(min(1.0, a @ b / math.sqrt((a @ a) * (b @ b))))) for b in rows] for a in rows]
    expected = []
    for head in (True, False):
        people = sorted(
            {int(label) for label, is_head in zip(before.labels, before.head, strict=True) if is_head == head}
        )
        within, nearest = [], []
        for person in people:
            mine = [i for i, label in enumerate(before.labels) if label == person]
            within.append(np.mean([angle[i][j] for i in mine for j in mine if i < j]))
            nearest += [min(angle[i][j] for j, label in enumerate(before.labels) if label != person) for i in mine]
        expected += [np.mean(within), np.mean(nearest)]
    text = leap_maps._distances(before)
    assert [float(number) for number in re.findall(r"([\d.]+)°", text)] == [round(value, 1) for value in expected]
    assert text.startswith("H (53 to 60 training images a person): ")
    assert "; T (5 training images a person): " in text


def test_angles_of_people_with_one_image_are_left_out(before):
    rows = np.flatnonzero(np.r_[True, np.diff(before.labels) != 0])
    one = replace(before, **{key: getattr(before, key)[rows] for key in ("embeddings", "labels", "head", "images")})
    assert leap_maps._distances(one) == ""
