"""What IJB scripts do differently, as named switches, and the sets of them that published numbers come from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from facetrain.errors import InputError
from facetrain.evaluation.identification import FpirRule
from facetrain.evaluation.ijb.templates import TemplateFusion
from facetrain.evaluation.scores import Rule

FPRS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Protocol:
    """Switches, and whose set of them it is.

    Attributes:
        name: the project that evaluates so; with ``, changed`` after single switches were set.
        flip: add the mirrored image's embedding.
        keep_norm: leave each image's embedding its length, which tells its quality, instead of scaling it to 1. (The
            project's scripts call this "use_norm_score", and one of them means the opposite by it.)
        detector_score: multiply each image's embedding by its detector score.
        unit_media: scale each medium's mean to length 1.
        template: ``sum`` or ``mean`` over media. The template is then scaled to length 1 in any case.
        score: ``cosine``, or ``arccos``: 1 - angle / pi. One rises with the other; thresholds differ.
        fpr_rule: which point of the ROC a FPR picks, see :func:`facetrain.evaluation.scores.tpr_at_fpr`.
        fpir_rule: which threshold a FPIR picks, see :func:`facetrain.evaluation.identification.tpir_at_fpir`.
    """

    name: str
    flip: bool
    keep_norm: bool
    detector_score: bool
    unit_media: bool = False
    template: TemplateFusion = "sum"
    score: Literal["cosine", "arccos"] = "cosine"
    fpr_rule: Rule = "nearest"
    fpir_rule: FpirRule = "exclusive"

    def switches(self) -> dict[str, str | int | float | bool]:
        """All of them, to stand beside the result."""
        shown = asdict(self)
        return {"protocol": shown.pop("name")} | {_shown(name): value for name, value in shown.items()}


PROTOCOLS = {
    one.name: one
    for one in (
        Protocol("insightface", flip=True, keep_norm=True, detector_score=True),
        Protocol("tface", flip=False, keep_norm=False, detector_score=False),
        Protocol("adaface", flip=True, keep_norm=True, detector_score=False),
        Protocol(
            "magface",
            flip=False,
            keep_norm=True,
            detector_score=False,
            unit_media=True,
            template="mean",
            score="arccos",
        ),
        Protocol("facex-zoo", flip=False, keep_norm=False, detector_score=True),
    )
}
"""Read from each project's own script; the 1:N rule is insightface's everywhere, as the others have none of their own
(AdaFace's merges both galleries, which is no open-set search)."""


def _shown(switch: str) -> str:
    return switch.replace("_", " ").replace("fpr", "FPR").replace("fpir", "FPIR")


def protocol_of(name: str = "insightface", **changes: Any) -> Protocol:
    """A project's switches, single ones changed; None leaves one as it is.

    Raises:
        InputError: no such project.
    """
    if name not in PROTOCOLS:
        raise InputError(f"protocol {name} is unknown; expected one of {', '.join(PROTOCOLS)}")
    known = PROTOCOLS[name]
    wanted = {key: value for key, value in changes.items() if value is not None}
    changed = replace(known, **wanted)
    return known if changed == known else replace(changed, name=f"{name}, changed")
