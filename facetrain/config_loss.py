"""What a recipe may say of the loss: margin, classifier, feature clouds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from facetrain.config_base import Count, Decay, NotNegative, Positive, Section


class MarginConfig(Section):
    """``s * (cos(m1 * theta + m2) - m3)`` on the target (ArcFace: Deng et al., CVPR 2019, Eq. 4)."""

    kind: Literal["cosface", "arcface", "combined"] = "cosface"
    scale: float = Field(64.0, gt=0, le=128, description="s; beyond 128 a float32 softmax underflows")
    m: float | None = Field(None, description="the margin of cosface (default 0.35) or arcface (default 0.5)")
    m1: float | None = Field(None, description="combined only: multiplies the angle, >= 1")
    m2: float | None = Field(None, description="combined only: added to the angle, radians, >= 0")
    m3: float | None = Field(None, description="combined only: subtracted from the cosine, >= 0")
    gradient: Literal["straight_through", "exact"] = Field(
        "straight_through", description="gradient of the angular margins; straight_through takes the plain cosine's"
    )

    @model_validator(mode="after")
    def _check(self) -> MarginConfig:
        combined = {"m1": self.m1, "m2": self.m2, "m3": self.m3}
        if self.kind == "combined":
            if self.m is not None:
                raise ValueError("m belongs to cosface and arcface; with kind: combined set m1, m2, m3")
            if all(value is None for value in combined.values()):
                raise ValueError("kind: combined needs at least one of m1, m2, m3")
        else:
            for name, value in combined.items():
                if value is not None:
                    raise ValueError(f"{name} belongs to kind: combined; with kind: {self.kind} set m")
        m1, m2, m3 = self.parameters
        if not 1 <= m1 <= 4:
            raise ValueError(f"m1 = {m1:g} must lie in 1..4")
        if not 0 <= m2 < 1.5707:
            raise ValueError(f"the angular margin {m2:g} must lie in 0..pi/2 radians")
        if not 0 <= m3 < 1:
            raise ValueError(f"the cosine margin {m3:g} must lie in 0..1")
        return self

    @property
    def parameters(self) -> tuple[float, float, float]:
        """(m1, m2, m3) of the combined form."""
        if self.kind == "cosface":
            return 1.0, 0.0, 0.35 if self.m is None else self.m
        if self.kind == "arcface":
            return 1.0, 0.5 if self.m is None else self.m, 0.0
        return (
            1.0 if self.m1 is None else self.m1,
            0.0 if self.m2 is None else self.m2,
            0.0 if self.m3 is None else self.m3,
        )


class ClassifierConfig(Section):
    """The sharded classifier (partial FC: An et al., CVPR 2022)."""

    margin: MarginConfig = MarginConfig()
    sample_rate: float = Field(1.0, gt=0, le=1, description="share of the negative classes that take part in a step")
    chunk: Count | None = Field(
        None, description="classes whose logits are computed at once; left out: what suits the batch and the device"
    )
    keep_gb: NotNegative = Field(
        4.0,
        description="GB a rank for exponentials that the backward pass needs again; what does not fit is computed "
        "anew, a fourth matrix product instead of three",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="of the factors in its matrix products: bf16 is for GPUs, several times slower on most CPUs; sums, "
        "exponentials, weights and loss stay float32",
    )


class LeapConfig(Section):
    """Feature clouds for people with few images (LEAP: Liu et al., CVPR 2020); keys its paper leaves open say so."""

    variant: Literal["off", "vanilla", "full"] = Field(
        "off", description="vanilla: head and tail by head_threshold, Eq. 6; full: by every class's own spread, Eq. 9"
    )
    track: bool = Field(False, description="keep centres and angles with variant: off too, to look at")
    head_threshold: Count | None = Field(
        None,
        description="T: classes with more training images are head; vanilla needs it, else it only sorts reports",
    )
    start_cycle: Count | None = Field(
        None, description="clouds begin with this cycle of the triangular schedule; left out there: 3, as in the paper"
    )
    start_epoch: NotNegative | None = Field(None, description="clouds begin after so many epochs, any schedule")
    center_gamma: Decay = Field(0.9, description="open: weight of the previous centre; 0.1 is Eq. 4 as printed")
    angle_against: Literal["previous", "updated"] = Field(
        "previous", description="open: the centre that angles are measured against"
    )
    cloud_noise: Literal["per_class", "per_sample"] = Field(
        "per_class", description="open: a draw for every logit of a row, or one for all of them"
    )
    memory_factor: Count = Field(1, description="open: P, angles kept of a class per training image of it (Eq. 5)")
    sync_interval: Count = Field(5, description="steps between updates of centres and angles (section 4.3)")
    fixed_sigma: Positive | None = Field(
        None, description="control, vanilla only: every tail row's cloud has this sigma in radians, nothing is learned"
    )
    cloud_for: Literal["tail", "everyone"] = Field(
        "tail",
        description="control: everyone spreads the variance of the tail's clouds evenly over the training images",
    )

    @model_validator(mode="after")
    def _check(self) -> LeapConfig:
        if self.variant == "vanilla" and self.head_threshold is None:
            raise ValueError("variant: vanilla needs head_threshold, the most images that a tail class may have")
        if self.start_cycle is not None and self.start_epoch is not None:
            raise ValueError("start_cycle and start_epoch exclude each other; leave one out")
        on = self.variant != "off"
        for key in ("start_cycle", "start_epoch", "cloud_noise", "cloud_for"):
            self._refuse_idle(key, on, "variant: vanilla or full")
        for key in ("head_threshold", "center_gamma", "angle_against", "memory_factor", "sync_interval"):
            self._refuse_idle(key, self.active, "variant: vanilla or full, or track: true")
        self._refuse_idle("fixed_sigma", self.variant == "vanilla", "variant: vanilla")
        return self

    @property
    def active(self) -> bool:
        """Whether centres and angles are kept."""
        return self.variant != "off" or self.track
