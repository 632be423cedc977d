"""What a recipe may say: frozen models, one per stage, each key with its unit and its default.

Reading YAML, overrides and error messages live in :mod:`facetrain.recipe`; this module is the vocabulary alone.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from facetrain.config_base import Count, Decay, Fraction, NotNegative, Positive, Section, UserPath
from facetrain.config_loss import ClassifierConfig, LeapConfig

_PAPERS_CYCLE = 3  # of the triangular schedule: LEAP's section 4.1


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
    max_damaged: int = Field(
        100, ge=0, description="unreadable images that a run may meet; another of the same person stands in for each"
    )
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
    cuda_graph: bool = Field(
        False,
        description="GPUs, with compile: the network's kernels start together, so that the host never holds them up; "
        "needs train.accumulation: 1",
    )

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        self._refuse_idle("cuda_graph", self.compile, "compile: true")
        return self


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
    keep_best: bool = Field(True, description="the checkpoint with the best mean accuracy on evaluate.sets stays too")
    on_save_error: Literal["warn", "stop"] = Field(
        "warn", description="when a checkpoint cannot be written, other than the last: go on without it, or stop"
    )
    nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="at a loss or gradient that is not finite: stop the run, or leave out that update"
    )
    max_skipped: Count = Field(10, description="nonfinite: skip only: updates left out before the run stops")
    log_every: Count = Field(
        10, description="steps between log lines and NaN checks; on GPUs also between looks at signals"
    )
    threads: Count | None = Field(None, description="CPU threads per rank; left out: OMP_NUM_THREADS or torch's choice")
    timeout: Positive = Field(
        600.0, description="seconds without a step after which a run counts as hanging: it names the rank and ends"
    )

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        self._refuse_idle("max_skipped", self.nonfinite == "skip", "nonfinite: skip")
        return self


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
    profile: bool = Field(
        False, description="measure some updates: a table of where their time goes and a trace, under output/profile"
    )
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
        if self.model.cuda_graph and self.train.accumulation > 1:
            raise ValueError("model.cuda_graph needs train.accumulation: 1; leave one of them out")
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

    def cloud_start_step(self, steps_per_epoch: int) -> float:
        """The first step with feature clouds; infinite where the recipe has none."""
        start = self.cloud_start * steps_per_epoch
        return start if math.isinf(start) else math.ceil(round(start, 6))  # 63.00000000000001 is 63

    @property
    def cloud_start(self) -> float:
        """Epochs before feature clouds begin; infinite where the recipe has none."""
        if self.leap.variant == "off":
            return math.inf
        if self.leap.start_epoch is not None:
            return self.leap.start_epoch
        cycle = _PAPERS_CYCLE if self.leap.start_cycle is None else self.leap.start_cycle
        return (cycle - 1) * self.train.epochs / self.schedule.cycles
