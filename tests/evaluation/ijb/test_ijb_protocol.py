"""The projects' switches, as their scripts have them."""

from __future__ import annotations

import pytest

from facetrain.errors import InputError
from facetrain.evaluation.ijb.protocol import PROTOCOLS, protocol_of


@pytest.mark.parametrize(
    ("name", "flip", "keep_norm", "detector_score", "unit_media", "template", "score"),
    [
        ("insightface", True, True, True, False, "sum", "cosine"),
        ("tface", False, False, False, False, "sum", "cosine"),
        ("adaface", True, True, False, False, "sum", "cosine"),
        ("magface", False, True, False, True, "mean", "arccos"),
        ("facex-zoo", False, False, True, False, "sum", "cosine"),
    ],
)
def test_each_project(name, flip, keep_norm, detector_score, unit_media, template, score):
    assert protocol_of(name).switches() == {
        "protocol": name,
        "flip": flip,
        "keep norm": keep_norm,
        "detector score": detector_score,
        "unit media": unit_media,
        "template": template,
        "score": score,
        "FPR rule": "nearest",
        "FPIR rule": "exclusive",
    }


def test_single_switches_can_be_changed_and_say_so():
    changed = protocol_of("tface", flip=True, fpr_rule="strict", keep_norm=None)
    assert (
        changed.switches() | {"protocol": "tface", "flip": False, "FPR rule": "nearest"}
        == PROTOCOLS["tface"].switches()
    )
    assert (changed.name, changed.flip, changed.fpr_rule) == ("tface, changed", True, "strict")
    assert protocol_of("tface", flip=False) == PROTOCOLS["tface"]
    assert protocol_of().name == "insightface"
    with pytest.raises(
        InputError, match="protocol vgg is unknown; expected one of insightface, tface, adaface, magface, f"
    ):
        protocol_of("vgg")
