"""What can be known to fail before any process is started or anything is written."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from facetrain import launch
from facetrain.atomic import check_folder
from facetrain.checkpoints.files import listed, read_manifest, replaced
from facetrain.config import Config
from facetrain.config_loss import LeapConfig
from facetrain.data.dataset import Images, class_counts, open_images
from facetrain.data.sampler import steps_per_epoch
from facetrain.errors import InputError
from facetrain.evaluation.pairs import PairSet, read_bin

# What the weights, or the position in the data, mean something else without.
_FIXED = ("seed", "model", "optim.name", "train.batch_size", "train.accumulation", "leap.memory_factor")
_FREE = ("model.gradient_checkpointing", "model.compile", "model.cuda_graph", "model.dropout")


class Inputs(NamedTuple):
    """What a run reads, opened, and what is worth telling about it."""

    images: Images
    pair_sets: list[PairSet]
    notes: list[str]


def check(config: Config, ranks: int) -> Inputs:
    """Open what a run reads and check everything about it that needs no GPU and no other rank.

    Raises:
        InputError: the first thing that cannot work.
    """
    images = open_images(config.data.path, config.data.reader)
    expected = config.data.num_classes
    if expected is not None and expected != images.num_classes:
        raise InputError(
            f"data.num_classes is {expected}, but {config.data.path} has {images.num_classes} identities; "
            "correct it or leave it out"
        )
    if images.num_classes < 2:
        raise InputError(f"{config.data.path} has {images.num_classes} person; telling people apart needs at least 2")
    share = config.train.batch_size // config.train.accumulation // ranks
    if share < 2:
        raise InputError(
            f"train.batch_size {config.train.batch_size} leaves {share} images a step for some of {ranks} ranks with "
            f"train.accumulation {config.train.accumulation}; batch norm needs 2: set train.batch_size to at least "
            f"{2 * ranks * config.train.accumulation}"
        )
    per_epoch = steps_per_epoch(len(images), config.train.batch_size)
    _check_leap_steps(config, per_epoch)
    notes = check_leap(config.leap, class_counts(images.labels, images.num_classes), config.data.path)
    inputs = Inputs(images, [read_bin(path) for path in config.evaluate.sets], notes)
    _check_output(config, images)
    return inputs


def _check_leap_steps(config: Config, per_epoch: int) -> None:
    """Clouds need a step to begin at and statistics by then."""
    total = per_epoch * config.train.epochs
    if config.leap.variant != "off" and config.cloud_start_step(per_epoch) >= total:
        raise InputError(
            f"leap.start_epoch {config.cloud_start:g} leaves none of the {total} steps with clouds; lower it"
        )
    if config.leap.active and config.leap.sync_interval > total:
        raise InputError(
            f"leap.sync_interval {config.leap.sync_interval} is more than the run's {total} steps: centres and angles "
            "would never be updated; lower it"
        )


def check_leap(config: LeapConfig, counts: NDArray[np.int64], data: Path) -> list[str]:
    """Whether feature clouds can come about in these data, and what to tell about them.

    Args:
        config: the recipe's section.
        counts: (C,) training images of each class.
        data: where they are, for messages.

    Raises:
        InputError: no class can have a cloud, or none can say how wide it should be.
    """
    if config.variant == "off":
        return []
    present, threshold = counts[counts > 0], config.head_threshold
    able = present * config.memory_factor >= 2  # a variance needs two angles
    remedy = "set leap.memory_factor=2"
    if config.variant == "vanilla":
        assert threshold is not None
        if (present > threshold).all():
            raise InputError(
                f"leap.head_threshold {threshold} makes every class of {data} a head class: each has at least "
                f"{int(present.min())} images; raise it"
            )
        if (present <= threshold).all():
            raise InputError(
                f"leap.head_threshold {threshold} makes every class of {data} a tail class: none has more than "
                f"{int(present.max())} images; lower it"
            )
        able = able & (present <= threshold)
    elif (present <= 1).all():
        raise InputError(f"leap.variant: full weighs classes by images - 1, and every class of {data} has one image")
    if config.fixed_sigma is not None:
        return []
    if able.sum() < (1 if config.variant == "vanilla" else 2):  # alone a class is its own target
        which = "tail class" if config.variant == "vanilla" else "class"
        raise InputError(
            f"no {which} of {data} can have a cloud: with one image and leap.memory_factor {config.memory_factor} a "
            f"class never has the two angles that a variance needs; {remedy}"
        )
    single = int((present * config.memory_factor < 2).sum())
    if single and config.cloud_for == "tail":
        return [
            f"note: {single:,} of {len(counts):,} people have one image and never get a cloud, for a variance needs "
            f"two angles; {remedy} to let them"
        ]
    return []


def _check_output(config: Config, images: Images) -> None:
    checkpoints = config.output / "checkpoints"
    check_folder(config.output, "output")
    if not listed(checkpoints) and not replaced(checkpoints):
        return
    if config.train.resume == "never" and not launch.restarts():
        raise InputError(
            f"output: {config.output} already holds a run; set train.resume=auto to go on with it (elastic jobs "
            "always), or another output"
        )
    found = _newest_manifest(checkpoints)
    if found is None:
        return  # resuming will say what is wrong with each of them
    path, manifest = found
    for key, there, what in (("num_classes", images.num_classes, "people"), ("num_images", len(images), "images")):
        if manifest[key] != there:
            raise InputError(
                f"checkpoint {path} was made with {manifest[key]} {what}, {config.data.path} has {there}; "
                "take the data it was trained with or another output"
            )
    for key, before, now in changes(manifest["config"], config.model_dump(mode="json")):
        if key.startswith(_FIXED) and key not in _FREE:
            raise InputError(
                f"{key} is {now}, but checkpoint {path} was made with {before}; set it back or take another output"
            )


def _newest_manifest(checkpoints: Path) -> tuple[Path, dict[str, Any]] | None:
    for path in [*reversed(listed(checkpoints)), *replaced(checkpoints)]:
        with contextlib.suppress(InputError):
            return path, read_manifest(path)
    return None


def changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of everything that differs between two resolved recipes."""
    found = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += changes(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((f"{prefix}{key}", old, new))
    return found
