"""Where a pixel falls on a head: a stack of ellipses, one for every height, turned by yaw and pitch.

Skull coordinates: x to the right of the image, y down, z towards the camera, origin between the eyes on the axis, unit
half a typical head width. A surface is parametrised by the azimuth ``phi`` (0 = ahead) and the height ``v``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from facetrain.data.faces.traits import Identity, Nuisance

Floats = NDArray[np.float32]
PHI_MAX = 1.9  # textures cover azimuths -PHI_MAX..PHI_MAX
TOP, BOTTOM = -2.0, 2.0  # and heights TOP..BOTTOM
UNIT = 0.275  # of the image's side
EYE_LINE = 0.44  # of the image's height
_TABLE = np.linspace(TOP - 0.4, BOTTOM + 0.6, 240)
_CHEEK = np.exp(-(((_TABLE - 0.25) / 0.3) ** 2))
_TEMPLE = np.exp(-(((_TABLE + 0.6) / 0.35) ** 2))
_GRID = 56  # the surface is solved on at most this many rows and columns, then enlarged
_RELIEF = 64


@dataclass(frozen=True)
class Pose:
    """The camera's view: projection of points and the rays of the solving grid."""

    size: int
    scale: float
    centre: tuple[float, float]
    yaw: float
    pitch: float
    roll: float
    perspective: float

    @classmethod
    def of(cls, person: Identity, photo: Nuisance, size: int) -> Self:
        """A photo's pose, with the head placed as a detector would: by its eyes and mouth, not by its axis."""
        yaw = clamp(photo.yaw, -0.75, 0.75)
        pitch = clamp(photo.pitch, -0.4, 0.4)
        scale = UNIT * size * float(np.exp(photo.zoom)) * (1.0 - 0.12 * abs(np.sin(yaw)))
        follow = 0.75 * person.skull_depth * scale
        centre = (
            size * (0.5 + photo.shift_x) - follow * np.sin(yaw),
            size * (EYE_LINE + photo.shift_y) + follow * np.sin(pitch),
        )
        return cls(size, scale, (float(centre[0]), float(centre[1])), yaw, pitch, photo.roll, photo.perspective)

    def rays(self) -> tuple[Floats, Floats]:
        """View coordinates (X, Y) of the grid's pixel centres, each (g, g)."""
        g = min(self.size, _GRID)
        pixels = ((np.arange(g, dtype=np.float32) + 0.5) * (self.size / g) - 0.5).astype(np.float32)
        x = (pixels - np.float32(self.centre[0]))[None, :] / np.float32(self.scale)
        y = (pixels - np.float32(self.centre[1]))[:, None] / np.float32(self.scale)
        c, s = np.float32(np.cos(self.roll)), np.float32(np.sin(self.roll))
        return c * x + s * y, c * y - s * x

    @cached_property
    def rotation(self) -> NDArray[np.float64]:
        """(3, 3): skull coordinates as rows times it are camera coordinates: yaw, then pitch, then roll."""
        (cy, cp, cr), (sy, sp, sr) = (f([self.yaw, self.pitch, self.roll]) for f in (np.cos, np.sin))
        yaw = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
        pitch = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
        return np.asarray(yaw @ pitch @ np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]]))

    def project(self, x: Any, y: Any, z: Any) -> NDArray[np.float64]:
        """Skull coordinates, n numbers or one for all, to (n, 2) pixel columns and rows."""
        points = np.empty((max(np.size(x), np.size(y), np.size(z)), 3))
        points[:, 0], points[:, 1], points[:, 2] = x, y, z
        seen = points @ self.rotation
        near = self.scale / (1.0 - self.perspective * seen[:, 2:])
        return np.asarray(seen[:, :2] * near + self.centre)


@dataclass(frozen=True)
class Surface:
    """What each pixel of the grid sees: azimuth, height, unit normal, signed distance to the outline (> 0 inside)."""

    phi: Floats
    v: Floats
    normal: tuple[Floats, Floats, Floats]
    inside: Floats


def clamp(value: float, low: float, high: float) -> float:
    """``value`` kept within [low, high]; np.clip costs twenty times as much for one number."""
    return low if value < low else high if value > high else value


def outline(person: Identity, mouth_open: float) -> NDArray[np.complex128]:
    """Half width (real part) and half depth (imaginary part) of the head at the table's heights; width < 0 outside."""
    chin = person.chin_length + 0.12 * mouth_open
    down, up = _clip(_TABLE / chin), _clip(-_TABLE / person.crown_height)
    low = (1 - down ** clamp(person.jaw_square, 1.8, 7.0)) ** 0.55 * (1 - person.jaw_taper * down)
    high = np.sqrt(1 - up**2.6)
    width = np.where(_TABLE > 0, low, high)
    width = width + person.cheekbones * _CHEEK * (down < 1) + person.temple_width * _TEMPLE
    depth = np.where(_TABLE > 0, np.sqrt(1 - down**5) * (1 - 0.13 * down), high) * person.skull_depth
    beyond = np.maximum(_TABLE - chin, -_TABLE - person.crown_height)
    return np.where(beyond > 0, -beyond, width * person.face_width) + 1j * np.maximum(depth, 0.05)


def hull(person: Identity, top: float, side: float) -> NDArray[np.complex128]:
    """The same for hair and hats: the skull inflated by ``top`` and ``side``, falling straight down below the eyes."""
    crown = person.crown_height + top
    up = _clip(-_TABLE / crown)
    high = np.sqrt(1 - up**2.6)
    width = (high + person.temple_width * _TEMPLE * (up < 1)) * person.face_width + side * np.sqrt(high)
    depth = high * person.skull_depth + side
    beyond = -_TABLE - crown
    return np.where(beyond > 0, -beyond, width) + 1j * np.maximum(depth, 0.05)


def _clip(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.minimum(np.maximum(values, 0.0), 1.0)


def relief(person: Identity, photo: Nuisance) -> Floats:
    """Height of nose, lips, brow, cheeks and chin over the ellipses, on a grid over azimuth and height."""
    x = np.sin(np.linspace(-PHI_MAX, PHI_MAX, _RELIEF, dtype=np.float32))[None, :] * np.float32(person.face_width)
    v = np.linspace(TOP, BOTTOM, _RELIEF, dtype=np.float32)[:, None]

    def bump(x0: float, v0: float, sx: float, sv: float) -> Floats:
        both = np.exp(-(((x - x0) / sx) ** 2)) if x0 == 0 else np.exp(-(((np.abs(x) - x0) / sx) ** 2))
        return np.asarray(both * np.exp(-(((v - v0) / sv) ** 2)), np.float32)

    end = person.nose_length
    along = np.clip((v + 0.1) / (end + 0.02), 0, 1)
    ridge = (
        (0.28 + 0.72 * along)
        * person.nose_height
        / (1 + np.exp((v - end + 0.02) / 0.035))
        / (1 + np.exp(-(v + 0.1) / 0.06))
    )
    half = person.nose_bridge + (0.75 * person.nose_width - person.nose_bridge) * along**2
    total = ridge * np.exp(-((x / np.maximum(half, 0.03)) ** 2))
    total = total + person.nose_tip * bump(0, end - 0.09, 0.13, 0.1)
    total = total + person.nose_hump * bump(0, 0.3 * end, 0.08, 0.16)
    total = total + 0.08 * bump(0.8 * person.nose_width, end - 0.06, 0.07, 0.08)
    mouth = end + person.mouth_height
    total = total + 0.07 * bump(0, mouth, 0.28, 0.16) + 0.03 * bump(0, mouth + 0.07, 0.2, 0.06)
    total = total - person.eye_depth * bump(person.eye_spacing, -0.03, 0.2, 0.14)
    total = total + 0.05 * bump(person.eye_spacing - 0.05, -person.brow_height, 0.25, 0.1)
    total = total + (person.cheek_fullness + 0.05 * max(photo.smile, 0)) * bump(0.5, 0.5, 0.22, 0.24)
    total = total + person.chin_bump * bump(0, person.chin_length - 0.2, 0.2, 0.13)
    return np.asarray(total, np.float32)


def texture_coordinates(phi: Floats, v: Floats, side: int) -> tuple[Floats, Floats]:
    """Columns and rows of a square texture, in pixels."""
    columns = (phi + np.float32(PHI_MAX)) * np.float32(side / (2 * PHI_MAX)) - np.float32(0.5)
    rows = (v - np.float32(TOP)) * np.float32(side / (BOTTOM - TOP)) - np.float32(0.5)
    return columns, rows


def cast(pose: Pose, shape: NDArray[np.complex128], bumps: Floats | None) -> Surface:
    """Intersects the grid's rays with a head.

    For one height the section is an ellipse (w sin(phi), d cos(phi)); turned by the yaw its horizontal extent is
    R sin(phi + delta), so phi follows in closed form. Pitch, perspective and relief couple the heights; they are
    solved by a few damped fixed-point steps.
    """
    x0, y0 = pose.rays()
    cy, sy, cp, sp = (np.float32(f(a)) for a in (pose.yaw, pose.pitch) for f in (np.cos, np.sin))
    depth = np.float32(0.9) * np.sqrt(np.clip(1 - 0.4 * (x0 * x0 + y0 * y0), 0.1, 1)).astype(np.float32)
    height = np.zeros_like(depth)
    sine = np.zeros_like(depth)
    for step in range(3):
        near = 1 - np.float32(pose.perspective) * depth
        x, y = x0 * near, y0 * near
        v = y * cp + depth * sp
        section = np.interp(v, _TABLE, shape)
        signed, d = section.real.astype(np.float32), section.imag.astype(np.float32)
        w = np.abs(signed) + np.float32(1e-3)
        reach = np.sqrt((w * cy) ** 2 + (d * sy) ** 2)
        delta = np.arctan2(d * sy, w * cy)
        sine = np.minimum(np.maximum((x - height * sine) / reach, -0.999), 0.999)
        phi = np.arcsin(sine) - delta
        if bumps is not None:
            columns, rows = texture_coordinates(phi, v, _RELIEF)
            height = cv2.remap(bumps, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        ahead = d * np.cos(phi) * cy - w * np.sin(phi) * sy + height * np.sqrt(1 - sine * sine)
        new = v * sp + ahead * cp
        depth = new if step == 0 else 0.5 * (depth + new)
    inside = np.where(signed > 0, reach, -w) - np.abs(x)
    return Surface(phi, v, _normals(depth, float(x0[0, 1] - x0[0, 0])), inside.astype(np.float32))


def _normals(depth: Floats, pitch: float) -> tuple[Floats, Floats, Floats]:
    smooth = cv2.GaussianBlur(depth, (3, 3), 0.6)
    dx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3, scale=1 / (8 * pitch))
    dy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3, scale=1 / (8 * pitch))
    length = 1 / np.sqrt(dx * dx + dy * dy + 1)
    return -dx * length, -dy * length, length
