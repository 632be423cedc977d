"""Who somebody is and how a photo was taken: the numbers behind a synthetic face."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Self

import numpy as np

from facetrain import keyed

_IDENTITY = keyed.text_key("synthetic identity")
_NUISANCE = keyed.text_key("synthetic nuisance")


def _trait(mean: float, spread: float) -> Any:
    """A bell-shaped number: the sum of three uniforms, so it never leaves mean +- 3 * spread."""
    return field(metadata={"mean": mean, "spread": spread})


def _event(probability: float) -> Any:
    """0.0 when it does not happen, else uniform in (0, 1]: which kind, how strong."""
    return field(metadata={"probability": probability})


def _draw(cls: type, strength: float, *key: int) -> dict[str, float]:
    specification = [f.metadata for f in fields(cls)]
    u = keyed.uniform(*key, np.arange(len(specification))[:, None], np.arange(4))
    bell = 2.0 * (u[:, :3].sum(axis=1) - 1.5)
    values: dict[str, float] = {}
    for row, (f, how) in enumerate(zip(fields(cls), specification, strict=True)):
        if "mean" in how:
            values[f.name] = float(how["mean"] + strength * how["spread"] * bell[row])
        else:
            likely = min(1.0, how["probability"] * strength)
            values[f.name] = float(1.0 - u[row, 3]) if u[row, 0] < likely else 0.0
    return values


@dataclass(frozen=True)
class Identity:
    """What stays with a person. Lengths are in half head widths, angles in radians, colours positions on a palette."""

    # skull: half width, eye line to chin and to crown, profile depth, and how the outline runs down to the chin
    face_width: float = _trait(1.0, 0.07)
    chin_length: float = _trait(1.58, 0.11)
    crown_height: float = _trait(1.5, 0.07)
    skull_depth: float = _trait(1.25, 0.05)
    temple_width: float = _trait(0.0, 0.04)
    cheekbones: float = _trait(0.03, 0.03)
    jaw_taper: float = _trait(0.22, 0.1)
    jaw_square: float = _trait(3.6, 0.9)
    chin_bump: float = _trait(0.08, 0.05)
    cheek_fullness: float = _trait(0.03, 0.04)
    # eyes
    eye_spacing: float = _trait(0.46, 0.035)
    eye_width: float = _trait(0.205, 0.018)
    eye_open: float = _trait(0.085, 0.016)
    eye_tilt: float = _trait(0.06, 0.08)
    eye_depth: float = _trait(0.08, 0.03)
    iris_colour: float = _trait(0.35, 0.3)
    iris_size: float = _trait(0.085, 0.006)
    lid_fold: float = _trait(0.06, 0.02)
    lashes: float = _trait(0.5, 0.25)
    # brows
    brow_height: float = _trait(0.29, 0.04)
    brow_thickness: float = _trait(0.07, 0.022)
    brow_length: float = _trait(0.28, 0.03)
    brow_arch: float = _trait(0.05, 0.03)
    brow_tilt: float = _trait(0.0, 0.12)
    brow_dark: float = _trait(0.75, 0.13)
    # nose
    nose_length: float = _trait(0.68, 0.06)
    nose_width: float = _trait(0.21, 0.035)
    nose_bridge: float = _trait(0.1, 0.02)
    nose_height: float = _trait(0.3, 0.06)
    nose_hump: float = _trait(0.03, 0.03)
    nose_tip: float = _trait(0.1, 0.035)
    # mouth
    mouth_height: float = _trait(0.36, 0.04)
    mouth_width: float = _trait(0.34, 0.04)
    upper_lip: float = _trait(0.075, 0.022)
    lower_lip: float = _trait(0.1, 0.025)
    mouth_curve: float = _trait(0.0, 0.025)
    cupid_bow: float = _trait(0.025, 0.012)
    lip_colour: float = _trait(0.5, 0.2)
    # skin
    melanin: float = _trait(0.42, 0.24)
    undertone: float = _trait(0.0, 0.5)
    ruddiness: float = _trait(0.5, 0.3)
    freckles: float = _trait(0.1, 0.3)
    age: float = _trait(0.35, 0.3)
    beard: float = _trait(-0.1, 0.5)
    moustache: float = _trait(-0.1, 0.5)
    mole_x: float = _trait(0.0, 0.4)
    mole_y: float = _trait(0.5, 0.5)
    mole_size: float = _trait(0.01, 0.02)
    second_mole_x: float = _trait(0.0, 0.4)
    second_mole_y: float = _trait(0.3, 0.6)
    # hair
    hair_light: float = _trait(0.3, 0.25)
    hair_red: float = _trait(0.1, 0.35)
    hair_grey: float = _trait(-0.2, 0.3)
    hair_top: float = _trait(0.17, 0.07)
    hair_side: float = _trait(0.12, 0.06)
    hair_length: float = _trait(0.6, 0.8)
    hair_wave: float = _trait(0.3, 0.4)
    hairline: float = _trait(0.86, 0.1)
    hairline_peak: float = _trait(0.0, 0.08)
    receding: float = _trait(0.05, 0.14)
    fringe: float = _trait(-0.1, 0.28)
    parting: float = _trait(0.0, 0.35)
    # ears
    ear_size: float = _trait(0.27, 0.035)
    ear_flare: float = _trait(0.12, 0.05)

    @classmethod
    @lru_cache(maxsize=1024)
    def draw(cls, seed: int, identity: int) -> Self:
        """Person ``identity`` of the population ``seed``."""
        return cls(**_draw(cls, 1.0, seed, _IDENTITY, identity))


@dataclass(frozen=True)
class Nuisance:
    """What changes from photo to photo; every spread and probability is multiplied by the difficulty."""

    yaw: float = _trait(0.0, 0.3)
    pitch: float = _trait(0.0, 0.15)
    roll: float = _trait(0.0, 0.08)
    zoom: float = _trait(0.0, 0.06)
    shift_x: float = _trait(0.0, 0.02)
    shift_y: float = _trait(0.0, 0.02)
    perspective: float = _trait(0.08, 0.03)
    # light: direction (radians right and up), share of direct light, colour, overall strength
    light_x: float = _trait(0.0, 0.6)
    light_y: float = _trait(0.4, 0.3)
    light_hard: float = _trait(0.55, 0.14)
    light_warm: float = _trait(0.0, 0.09)
    light_green: float = _trait(0.0, 0.04)
    exposure: float = _trait(0.0, 0.16)
    contrast: float = _trait(1.0, 0.13)
    saturation: float = _trait(0.95, 0.18)
    shine: float = _trait(0.15, 0.12)
    # expression
    smile: float = _trait(0.2, 0.45)
    mouth_open: float = _trait(-0.15, 0.5)
    brow_raise: float = _trait(0.0, 0.03)
    eye_close: float = _trait(0.05, 0.22)
    gaze_x: float = _trait(0.0, 0.3)
    gaze_y: float = _trait(0.0, 0.15)
    # things that come and go with the day
    hair_volume: float = _trait(1.0, 0.22)
    hair_style: float = _trait(0.0, 0.1)
    hair_cut: float = _trait(0.0, 0.2)
    shave: float = _trait(0.0, 0.2)
    tan: float = _trait(0.0, 0.04)
    make_up: float = _event(0.12)
    glasses: float = _event(0.2)
    sunglasses: float = _event(0.05)
    hat: float = _event(0.13)
    mask: float = _event(0.03)
    occluder: float = _event(0.1)
    occluder_x: float = _trait(0.0, 0.5)
    occluder_y: float = _trait(0.5, 0.5)
    # surroundings and camera
    clothes: float = _event(1.0)
    background: float = _event(1.0)
    clutter: float = _event(0.7)
    blur: float = _event(0.35)
    motion: float = _event(0.1)
    low_resolution: float = _event(0.2)
    noise: float = _event(0.5)
    grey: float = _event(0.06)
    jpeg: float = _event(0.3)

    @classmethod
    def draw(cls, seed: int, identity: int, image: int, difficulty: float = 1.0) -> Self:
        """Photo ``image`` of person ``identity``."""
        return cls(**_draw(cls, difficulty, seed, _NUISANCE, identity, image))
