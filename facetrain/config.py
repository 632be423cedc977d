"""What a recipe may say: frozen models, one per stage, each key with its unit and its default.

Reading YAML, overrides and error messages live in :mod:`facetrain.recipe`; this module is the vocabulary alone.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]

_PAPERS_CYCLE = 3  # of the triangular schedule: LEAP's section 4.1


def _expanded(path: Path) -> Path:
    """``~`` in a recipe meets no shell that would expand it."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path} names a home folder that does not exist") from None


UserPath = Annotated[Path, AfterValidator(_expanded)]


class Section(BaseModel):
    """Base of every section: immutable, no unknown key, defaults checked like given values."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, validate_default=True, allow_inf_nan=False)

    def _refuse_idle(self, key: str, acts: bool, needs: str) -> None:
        """Refuse a value that was changed where it does nothing: whoever wrote it expects an effect."""
        if not acts and getattr(self, key) != type(self).model_fields[key].default:
            raise ValueError(f"{key} has no effect without {needs}; leave it out")


class AugmentConfig(Section):
    """Light augmentations of the field; each is drawn per image from (seed, epoch, image)."""

    flip: Fraction = Field(0.5, description="probability of a horizontal flip")
    crop: Fraction = Field(0.0, description="probability of a random resized crop")
    crop_scale: Fraction = Field(0.8, description="smallest side of the crop, as a fraction of the image's side")
    color: Fraction = Field(0.0, description="probability of a change of brightness, contrast and saturation")
    color_strength: Fraction = Field(0.3, description="largest relative change of each")
    gray: Fraction = Field(0.0, description="probability of removing colour")
    low_resolution: Fraction = Field(0.0, description="probability of shrinking to 25..90 % and enlarging again")
    blur: Fraction = Field(0.0, description="probability of a Gaussian blur, sigma 0.3..1.5 pixels at 112")
    erase: Fraction = Field(0.0, description="probability of a grey rectangle over 2..20 % of the image")


class DataConfig(Section):
    """The training images."""

    path: UserPath = Field(description="a .rec file (its .idx beside it) or a folder with one folder per person")
    reader: Literal["native", "mxnet", "dali"] = Field(
        "native", description="who reads the .rec and decodes its images"
    )
    num_classes: Count | None = Field(None, description="expected number of identities; left out: taken from the data")
    workers: int = Field(2, ge=0, le=256, description="decoding processes per rank; 0 decodes in the training process")
    prefetch: Count = Field(4, description="batches each worker keeps ready")
    augment: AugmentConfig = AugmentConfig()


class ModelConfig(Section):
    """The backbone: images to embeddings."""

    name: Literal["iresnet18", "iresnet34", "iresnet50", "iresnet100"] = "iresnet18"
    width: int = Field(64, ge=4, le=512, description="channels of the first stage; 64 is the field's, 16 suits a CPU")
    input_size: int = Field(112, ge=16, le=1024, description="pixels a side, after decoding and resizing")
    embedding_size: int = Field(512, ge=2, le=8192, description="D")
    activation: Literal["prelu", "relu"] = "prelu"
    dropout: float = Field(0.0, ge=0, lt=1)
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: slower, less memory"
    )
    compile: bool = Field(False, description="torch.compile: faster steps after a minute or more of compilation")


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
    chunk: Count = Field(8192, description="classes whose logits are in memory at once")
    keep_logits: bool = Field(
        True, description="keep exponentials for the backward pass (faster); false recomputes them (least memory)"
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
        "tail", description="control: everyone gives all rows the mean variance that clouds of the tail would have"
    )

    @model_validator(mode="after")
    def _check(self) -> LeapConfig:
        if self.variant == "vanilla" and self.head_threshold is None:
            raise ValueError("variant: vanilla needs head_threshold, the most images that a tail class may have")
        if self.start_cycle is not None and self.start_epoch is not None:
            raise ValueError("start_cycle and start_epoch exclude each other; leave one out")
        on = self.variant != "off"
        self._refuse_idle("track", not on, "variant: off (the others always track)")
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


class OptimConfig(Section):
    """The optimiser of backbone and classifier."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = Field(0.1, description="the schedule's highest learning rate")
    momentum: Decay = Field(0.9, description="sgd only")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="adamw only")
    weight_decay: NotNegative = 5e-4
    clip_norm: Positive | None = Field(None, description="largest gradient norm; left out: no clipping")
    clip_scope: Literal["all", "backbone"] = Field("all", description="whose gradients the norm is of")

    @model_validator(mode="after")
    def _check(self) -> OptimConfig:
        self._refuse_idle("momentum", self.name == "sgd", "name: sgd")
        self._refuse_idle("betas", self.name == "adamw", "name: adamw")
        self._refuse_idle("clip_scope", self.clip_norm is not None, "clip_norm")
        return self


class ScheduleConfig(Section):
    """The learning rate as a function of the step."""

    name: Literal["triangular", "polynomial", "cosine"] = "cosine"
    cycles: Count = Field(3, description="triangular only: cycles of equal length over the whole run")
    warmup_epochs: NotNegative = Field(0.0, description="polynomial and cosine only")
    power: Positive = Field(2.0, description="polynomial only")
    min_lr: NotNegative = Field(0.0, description="the lowest learning rate")

    @model_validator(mode="after")
    def _check(self) -> ScheduleConfig:
        self._refuse_idle("cycles", self.name == "triangular", "name: triangular")
        self._refuse_idle("warmup_epochs", self.name != "triangular", "name: polynomial or cosine")
        self._refuse_idle("power", self.name == "polynomial", "name: polynomial")
        return self


class TrainConfig(Section):
    """The loop."""

    epochs: Count = 20
    batch_size: Count = Field(512, description="images per update over all ranks and accumulation steps")
    accumulation: Count = Field(1, description="micro-batches per update")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: autocast of the backbone; the loss stays float32"
    )
    tf32: bool = Field(
        False,
        description="GPUs only: TensorFloat-32 in convolutions and matrix products, the classifier's cosines included; "
        "faster, with 10 bits of mantissa",
    )
    resume: Literal["never", "auto"] = Field("never", description="auto: go on from the newest checkpoint under output")
    checkpoint_every: Count = Field(2000, description="steps between checkpoints; one is always written at the end")
    keep_checkpoints: int = Field(2, ge=1, description="how many of the newest checkpoints stay")
    log_every: Count = Field(
        10, description="steps between log lines and NaN checks; on GPUs also between looks at signals"
    )
    threads: Count | None = Field(None, description="CPU threads per rank; left out: OMP_NUM_THREADS or torch's choice")
    timeout: Positive = Field(600.0, description="seconds a rank waits for another before the run fails")


class EvaluateConfig(Section):
    """Verification on pair sets, during training and at its end."""

    sets: tuple[UserPath, ...] = Field((), description="insightface .bin files")
    every: int = Field(2000, ge=0, description="steps between evaluations; 0: only at the end")
    batch_size: Count = 256
    flip: bool = Field(True, description="add the embedding of the mirrored image")


class Config(Section):
    """A whole recipe."""

    output: UserPath = Field(description="the run's folder: checkpoints, logs, report")
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig
    model: ModelConfig = ModelConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    leap: LeapConfig = LeapConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.train.batch_size % self.train.accumulation:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} must be a multiple of train.accumulation "
                f"{self.train.accumulation}"
            )
        if self.schedule.min_lr > self.optim.lr:
            raise ValueError(f"schedule.min_lr {self.schedule.min_lr:g} must not exceed optim.lr {self.optim.lr:g}")
        if self.schedule.name != "triangular" and self.schedule.warmup_epochs >= self.train.epochs:
            raise ValueError(
                f"schedule.warmup_epochs {self.schedule.warmup_epochs:g} must be less than train.epochs "
                f"{self.train.epochs}"
            )
        self._check_leap()
        return self

    def _check_leap(self) -> None:
        """Clouds must begin at a time that the run has."""
        if self.leap.variant == "off":
            return
        triangular = self.schedule.name == "triangular"
        if self.leap.start_cycle is not None:
            if not triangular:
                raise ValueError("leap.start_cycle needs schedule.name: triangular; set leap.start_epoch instead")
            if self.leap.start_cycle > self.schedule.cycles:
                raise ValueError(
                    f"leap.start_cycle {self.leap.start_cycle} begins after the end: schedule.cycles is "
                    f"{self.schedule.cycles}"
                )
        elif self.leap.start_epoch is None and not triangular:
            raise ValueError("leap.start_epoch must say when clouds begin: only the triangular schedule has a default")
        if self.cloud_start >= self.train.epochs:
            raise ValueError(
                f"clouds would begin after {self.cloud_start:g} of train.epochs {self.train.epochs} epochs: set "
                "leap.start_epoch or leap.start_cycle to an earlier time"
            )

    @property
    def cloud_start(self) -> float:
        """Epochs before feature clouds begin; infinite where the recipe has none."""
        if self.leap.variant == "off":
            return math.inf
        if self.leap.start_epoch is not None:
            return self.leap.start_epoch
        cycle = _PAPERS_CYCLE if self.leap.start_cycle is None else self.leap.start_cycle
        return (cycle - 1) * self.train.epochs / self.schedule.cycles
