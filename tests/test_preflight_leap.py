from pathlib import Path

import numpy as np
import pytest

from facetrain.config_loss import LeapConfig
from facetrain.errors import InputError
from facetrain.preflight import check_leap

DATA = Path("faces.rec")
COUNTS = np.array([60, 60, 5, 5, 1])


def _check(counts=COUNTS, **keys):
    return check_leap(LeapConfig(**keys), np.asarray(counts), DATA)


@pytest.mark.parametrize(
    ("counts", "keys", "words"),
    [
        ([60, 60, 5], {"variant": "vanilla", "head_threshold": 4}, "makes every class of faces.rec a head class"),
        ([60, 60, 5], {"variant": "vanilla", "head_threshold": 60}, "makes every class of faces.rec a tail class"),
        ([60, 60, 1], {"variant": "vanilla", "head_threshold": 4}, "no tail class of faces.rec can have a cloud"),
        ([1, 1, 1], {"variant": "full", "memory_factor": 4}, "every class of faces.rec has one image"),
    ],
)
def test_data_without_clouds_are_one_clear_line(counts, keys, words):
    with pytest.raises(InputError, match=words) as caught:
        _check(counts, **keys)
    assert "\n" not in str(caught.value)


def test_single_images_are_told_of():
    (note,) = _check(variant="vanilla", head_threshold=5)
    assert note.startswith("note: 1 of 5 people have one image and never get a cloud")
    assert "leap.memory_factor=2" in note
    assert _check(variant="vanilla", head_threshold=5, memory_factor=2) == []
    assert _check(variant="vanilla", head_threshold=5, fixed_sigma=0.1) == []
    assert _check([60, 5, 0], variant="full") == []  # a class without images is nobody's loss


def test_nothing_is_checked_without_clouds():
    assert _check([1, 1]) == []
    assert _check([1, 1], track=True, head_threshold=3) == []


def test_one_able_class_has_nothing_to_reach_for():
    with pytest.raises(InputError, match="can have a cloud"):
        _check([5, 1, 1], variant="full")


def test_controls_need_no_variance():
    assert _check([60, 60, 1], variant="vanilla", head_threshold=4, fixed_sigma=0.1) == []
    assert _check(variant="vanilla", head_threshold=5, cloud_for="everyone") == []
