"""The skin of a synthetic face, painted into a texture over azimuth and height.

Features are closed curves in frontal coordinates (x, y), the units of :mod:`facetrain.data.faces.skull`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from facetrain.data.faces.canvas import (
    IRIS,
    SHIFT,
    Bytes,
    Canvas,
    Colour,
    hair_colour,
    noise_tile,
    palette,
    skin_colour,
)
from facetrain.data.faces.skull import BOTTOM, PHI_MAX, TOP, clamp

if TYPE_CHECKING:
    from facetrain.data.faces.traits import Identity, Nuisance

_COARSE = 40  # rows and columns of the map of soft colour changes


def face_texture(person: Identity, photo: Nuisance, size: int) -> Bytes:
    """The whole texture, (side, side, 3) RGB, with side about 1.25 * size."""
    skin = skin_colour(person, photo)
    canvas = Canvas(round(1.25 * size), person.face_width)
    canvas.image[...] = np.clip(_mottled(person, photo, canvas.side) * skin, 0, 255)
    _beard(canvas, person, photo, skin)
    _marks(canvas, person, skin)
    _nostrils(canvas, person, skin)
    _mouth(canvas, person, photo, skin)
    for side in (-1.0, 1.0):
        _eye(canvas, person, photo, skin, side)
        _brow(canvas, person, photo, skin, side)
    return canvas.image


def _mottled(person: Identity, photo: Nuisance, side: int) -> NDArray[np.float32]:
    """Soft colour changes of the skin as RGB factors: blush, dark lids, folds, uneven tone."""
    phi = np.linspace(-PHI_MAX, PHI_MAX, _COARSE, dtype=np.float32)[None, :]
    v = np.linspace(TOP, BOTTOM, _COARSE, dtype=np.float32)[:, None]
    a = np.abs(phi)

    def blob(x0: float, v0: float, sx: float, sv: float) -> NDArray[np.float32]:
        return np.asarray(np.exp(-(((a - x0) / sx) ** 2)) * np.exp(-(((v - v0) / sv) ** 2)), np.float32)

    end, red, age = person.nose_length, clamp(person.ruddiness, 0, 1.5), clamp(person.age, 0, 1.3)
    blush = red * (blob(0.55, 0.5, 0.3, 0.28) + 0.8 * blob(0, end - 0.05, 0.2, 0.15) + 0.4 * blob(0.0, -0.7, 0.5, 0.3))
    if photo.make_up:
        blush = blush + 0.6 * blob(0.6, 0.42, 0.2, 0.18)
    dark = (0.1 + 0.2 * age) * blob(person.eye_spacing - 0.05, 0.1, 0.2, 0.07)
    dark = dark + (0.12 + 0.12 * person.eye_depth / 0.08) * blob(person.eye_spacing - 0.06, -0.12, 0.24, 0.09)
    dark = dark + 0.16 * blob(person.nose_width, end - 0.03, 0.06, 0.1) + 0.14 * blob(0, end + 0.1, 0.1, 0.07)
    dark = dark + 0.14 * blob(0, end + person.mouth_height + 0.16, 0.2, 0.05)
    fold = np.abs(a - (person.nose_width + 0.06 + 0.42 * (v - end))) / 0.07
    dark = dark + (0.05 + 0.25 * age) * np.exp(-(fold**2)) * np.exp(-(((v - end - 0.1) / 0.2) ** 2))
    waves = np.sin(v * 38.0 + 0.6 * np.cos(2 * phi)) * np.exp(-(((v + 0.62) / 0.18) ** 2)) * np.exp(-((a / 0.6) ** 2))
    dark = dark + 0.12 * clamp(age - 0.4, 0, 1) * waves
    o = int(abs(person.mole_x) * 9973) % 200
    cloud = noise_tile("cloud")[o : o + _COARSE, :_COARSE]
    factor = np.empty((_COARSE, _COARSE, 3), np.float32)
    factor[..., 0] = 1 - dark * 0.85 + 0.03 * cloud + 0.02 * blush
    factor[..., 1] = 1 - dark * 1.05 + 0.03 * cloud - 0.12 * blush
    factor[..., 2] = 1 - dark * 1.0 + 0.02 * cloud - 0.11 * blush
    return np.asarray(cv2.resize(factor, (side, side), interpolation=cv2.INTER_LINEAR), np.float32)


def _marks(canvas: Canvas, person: Identity, skin: Colour) -> None:
    strength = clamp(person.freckles, 0, 1)
    if strength > 0.05:
        where = canvas.window(-0.75, 0.75, -0.2, 0.85)
        part = canvas.image[where]
        o = int(abs(person.second_mole_x) * 7919) % 90
        specks = noise_tile("specks")[o : o + part.shape[0], o : o + part.shape[1], None]
        rows = np.hanning(part.shape[0])[:, None, None] * np.hanning(part.shape[1])[None, :, None]
        part[...] = np.clip(part * (1 - 0.3 * strength * specks * rows.astype(np.float32) * (0.6, 0.9, 1.0)), 0, 255)
    if person.mole_size > 0.008:
        brown = skin * (0.38, 0.3, 0.3)
        canvas.dot(person.mole_x, person.mole_y, person.mole_size, brown)
        if person.mole_size > 0.02:
            canvas.dot(person.second_mole_x, person.second_mole_y, 0.7 * person.mole_size, brown)


def _beard(canvas: Canvas, person: Identity, photo: Nuisance, skin: Colour) -> None:
    beard = clamp(person.beard + photo.shave, 0, 1)
    moustache = clamp(max(person.moustache, 0.6 * person.beard) + photo.shave, 0, 1)
    if max(beard, moustache) < 0.04:
        return
    mouth = person.nose_length + person.mouth_height
    mask = np.zeros((canvas.side, canvas.side), np.uint8)
    if beard > 0.04:
        shade = (255 * min(1.0, 0.15 + 1.0 * beard),)
        x = np.array([-0.98, -0.9, -0.62, -0.36, -0.3, 0.3, 0.36, 0.62, 0.9, 0.98, 0.98, -0.98])
        y = np.array([0.0, 0.45, 0.72, mouth - 0.02, mouth + 0.13, mouth + 0.13, mouth - 0.02, 0.72, 0.45, 0.0, 2, 2])
        cv2.fillPoly(mask, [canvas.pixels(x * canvas.half_width, y)], shade, cv2.LINE_AA, SHIFT)
    if moustache > 0.04:
        x = np.array([0, 0.16, 0.34, 0.4, 0.3, 0.12])
        y = mouth + np.array([-0.24, -0.2, -0.06, 0.06, 0.0, -0.07])
        x, y = np.concatenate([x, -x[::-1]]), np.concatenate([y, y[::-1]])
        cv2.fillPoly(mask, [canvas.pixels(x, y)], (255 * min(1.0, 0.15 + moustache),), cv2.LINE_AA, SHIFT)
    where = canvas.window(-2, 2, 0.0, BOTTOM)
    soft = cv2.GaussianBlur(mask[where], (0, 0), 0.05 * canvas.unit)
    grain = noise_tile("white")[: soft.shape[0], : soft.shape[1]]
    alpha = (soft * np.float32(0.75 / 255) * np.clip(1 + 0.25 * grain, 0, 1.3))[..., None]
    hair = (0.75 * hair_colour(person) + 0.1 * skin).astype(np.float32)
    part = canvas.image[where]
    part[...] = part + alpha * (hair - part)


def _nostrils(canvas: Canvas, person: Identity, skin: Colour) -> None:
    y = person.nose_length + 0.005
    t = np.linspace(0, 2 * np.pi, 9)[:-1]
    for side in (-1, 1):
        x = side * 0.45 * person.nose_width
        canvas.fill(x + 0.055 * np.cos(t), y + 0.025 * np.sin(t), skin * (0.42, 0.33, 0.32))


def _mouth(canvas: Canvas, person: Identity, photo: Nuisance, skin: Colour) -> None:
    smile = clamp(photo.smile, -0.5, 1.3)
    gape = 0.16 * clamp(photo.mouth_open, 0, 1.3)
    y0 = person.nose_length + person.mouth_height - 0.03 * max(smile, 0)
    half = person.mouth_width * (1 + 0.16 * smile)
    u = np.linspace(-1, 1, 13)
    bend = u**2 * (-0.09 * smile - person.mouth_curve) + 0.02 * max(smile, 0)
    thin = 1 - 0.25 * max(smile, 0)
    dome = 1 - u**2
    bow = person.cupid_bow * (np.exp(-(((np.abs(u) - 0.22) / 0.15) ** 2)) - 1.2 * np.exp(-((u / 0.12) ** 2)))
    top = y0 + bend - thin * max(person.upper_lip, 0.02) * dome**0.8 - bow * dome
    under = y0 + bend - 0.25 * gape * dome
    over = y0 + bend + gape * dome
    bottom = over + thin * max(person.lower_lip, 0.03) * dome**0.7
    red = np.array([0.9, 0.62, 0.62]) if not photo.make_up else np.array([0.95, 0.35 + 0.3 * photo.make_up, 0.45])
    colour = skin * (1 - (1 - red) * (0.5 + clamp(person.lip_colour, 0, 1.2)))
    x = half * u
    both = np.concatenate([x, x[::-1]])
    canvas.fill(both, np.concatenate([top, under[::-1]]), colour * 0.88)
    canvas.fill(both, np.concatenate([over, bottom[::-1]]), colour * 1.02)
    if gape > 0.02:
        canvas.fill(both, np.concatenate([under, over[::-1]]), (62, 26, 26))
        teeth = np.minimum(under + 0.075 * dome, over)
        canvas.fill(both * 0.88, np.concatenate([under, teeth[::-1]]), (226, 220, 208))
    else:
        canvas.line(x * 1.03, under, colour * 0.45, 0.03)
    shine = skin * 0.4 + colour * 0.6 + 12
    canvas.line(x[4:9], (0.45 * over + 0.55 * bottom)[4:9], shine, 0.03)


def _eye(canvas: Canvas, person: Identity, photo: Nuisance, skin: Colour, side: float) -> None:
    opening = clamp(1 - max(photo.eye_close, 0) - 0.22 * max(photo.smile, 0), 0.05, 1.1)
    half, height = person.eye_width, max(person.eye_open, 0.035) * opening
    u = np.linspace(-1, 1, 11)
    x = side * person.eye_spacing + half * u
    tilt = -side * person.eye_tilt * half * u  # the outer corner is higher for a positive tilt
    inner = -side * u  # 1 at the nose
    upper = tilt - height * 1.25 * (1 - np.abs(u) ** 2.2) * (1 + 0.12 * inner)
    lower = tilt + height * 0.75 * (1 - u**2) * (1 - 0.15 * inner) + 0.02 * max(photo.smile, 0) * (u**2 - 1)
    lower = np.maximum(lower, upper + 0.004)
    where = canvas.window(x[0] - 0.04, x[-1] + 0.04, float(upper.min()) - 0.05, float(lower.max()) + 0.05)
    if photo.make_up:
        lid = upper - (0.05 + person.lid_fold) * (1 - u**2)
        canvas.fill(np.concatenate([x, x[::-1]]), np.concatenate([upper, lid[::-1]]), skin * (0.6, 0.5, 0.6))
    ball, mask = canvas.image.copy(), np.zeros((canvas.side, canvas.side), np.uint8)
    ball[where] = (232, 226, 220)
    iris = palette(IRIS, person.iris_colour)
    radius = max(person.iris_size, 0.05)
    gaze_x = side * person.eye_spacing + 0.06 * clamp(photo.gaze_x, -1, 1)
    gaze_y = 0.06 * clamp(photo.gaze_y, -0.6, 0.6) - 0.012
    canvas.dot(gaze_x, gaze_y, radius, iris * 0.55, ball)
    canvas.dot(gaze_x, gaze_y, 0.82 * radius, iris, ball)
    canvas.dot(gaze_x, gaze_y, 0.42 * radius, (12, 10, 10), ball)
    canvas.dot(gaze_x + 0.03 * np.sign(photo.light_x), gaze_y - 0.03, 0.02, (250, 250, 250), ball)
    cv2.fillPoly(
        mask,
        [canvas.pixels(np.concatenate([x, x[::-1]]), np.concatenate([upper, lower[::-1]]))],
        (255,),
        cv2.LINE_AA,
        SHIFT,
    )
    canvas.blend(ball, mask, where)
    crease = upper - max(person.lid_fold, 0.0) * (1 - 0.5 * u**2)
    canvas.line(x, crease, skin * 0.66, 0.02)
    canvas.line(x, lower + 0.005, skin * 0.7, 0.015)
    lash = clamp(person.lashes + 0.5 * (photo.make_up > 0), 0.1, 1.2)
    canvas.line(x + side * 0.012, upper, skin * (0.5 - 0.38 * min(lash, 1.0)), 0.025 + 0.025 * lash)


def _brow(canvas: Canvas, person: Identity, photo: Nuisance, skin: Colour, side: float) -> None:
    t = np.linspace(0, 1, 9)
    along = person.eye_spacing - 0.55 * person.brow_length - 0.02 + 1.45 * person.brow_length * t
    arch = person.brow_arch * np.sin(np.pi * np.clip(t * 0.9 + 0.05, 0, 1)) * 1.6
    y = -person.brow_height - photo.brow_raise - arch - person.brow_tilt * person.brow_length * (t - 0.4)
    half = max(person.brow_thickness, 0.015) * (0.62 + 0.3 * np.sin(np.pi * t) - 0.45 * t**2)
    x = side * along
    where = canvas.window(float(x.min()) - 0.05, float(x.max()) + 0.05, float(y.min()) - 0.15, float(y.max()) + 0.15)
    mask = np.zeros((canvas.side, canvas.side), np.uint8)
    points = canvas.pixels(np.concatenate([x, x[::-1]]), np.concatenate([y - half, (y + half)[::-1]]))
    cv2.fillPoly(mask, [points], (255 * clamp(person.brow_dark, 0.2, 0.95),), cv2.LINE_AA, SHIFT)
    part = canvas.image[where]
    soft = cv2.GaussianBlur(mask[where], (0, 0), 0.4 + 0.012 * canvas.unit)
    alpha = (soft * np.float32(1 / 255))[..., None]
    colour = (0.62 * hair_colour(person) + 0.05 * skin).astype(np.float32)
    part[...] = part + alpha * (colour - part)
