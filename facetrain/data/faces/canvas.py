"""Colours, noise tiles and a texture to paint on."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facetrain import keyed
from facetrain.data.faces.skull import BOTTOM, PHI_MAX, TOP, clamp

if TYPE_CHECKING:
    from facetrain.data.faces.traits import Identity, Nuisance

Bytes = NDArray[np.uint8]
Colour = NDArray[np.float64]
SHIFT = 4  # OpenCV takes fixed-point coordinates
SKIN = np.array([(243, 208, 186), (232, 186, 156), (208, 154, 118), (160, 108, 78), (108, 70, 50), (72, 46, 34)], float)
HAIR = np.array([(22, 18, 18), (44, 30, 24), (84, 56, 38), (128, 90, 56), (180, 140, 88), (222, 194, 140)], float)
IRIS = np.array([(44, 28, 18), (92, 58, 30), (120, 92, 44), (96, 116, 72), (92, 128, 158), (140, 158, 172)], float)


def palette(stops: NDArray[np.float64], position: float) -> Colour:
    """The colour at ``position`` in 0..1 between equally spaced stops."""
    at = clamp(float(position), 0.0, 1.0) * (len(stops) - 1)
    low = min(int(at), len(stops) - 2)
    return np.asarray(stops[low] + (at - low) * (stops[low + 1] - stops[low]))


def skin_colour(person: Identity, photo: Nuisance) -> Colour:
    """RGB of the lit skin, 0..255."""
    base = palette(SKIN, person.melanin + photo.tan)
    return np.clip(base + person.undertone * np.array([7.0, 0.0, -9.0]), 10, 255)


def hair_colour(person: Identity) -> Colour:
    """RGB of the hair, 0..255; darker skin goes with darker hair, as a tendency."""
    base = palette(HAIR, person.hair_light + 0.35 * (0.42 - person.melanin))
    base = base + max(person.hair_red, 0.0) * np.array([42.0, -4.0, -18.0])
    grey = clamp(person.hair_grey + 0.5 * (person.age - 0.35), 0, 0.85)
    return np.clip(base * (1 - grey) + grey * np.array([176.0, 174.0, 172.0]), 8, 250)


@lru_cache(maxsize=4)
def noise_tile(kind: str) -> NDArray[np.float32]:
    """A 256 x 256 tile of zero mean, unit variance, that repeats seamlessly.

    ``kind`` is "white" (this one 512 x 512), "cloud" (soft blobs), "hair" (streaks down) or "specks" (mostly 0).
    """
    side = 256
    rows, columns = np.arange(side)[:, None], np.arange(side)
    u = keyed.uniform(keyed.text_key("synthetic " + kind), rows, columns[None, :], np.arange(3)[:, None, None])
    tile: NDArray[Any] = u.sum(axis=0).astype(np.float32)
    if kind != "white":
        sigma = {"cloud": (14.0, 14.0), "hair": (1.2, 22.0), "specks": (1.4, 1.4)}[kind]
        wide = np.tile(tile, (3, 3))
        tile = cv2.GaussianBlur(wide, (0, 0), sigmaX=sigma[0], sigmaY=sigma[1])[side : 2 * side, side : 2 * side]
    tile = (tile - tile.mean()) / tile.std()
    if kind == "white":
        tile = np.tile(tile, (2, 2))
    return np.clip(tile - 1.2, 0, None) if kind == "specks" else np.ascontiguousarray(tile)


class Canvas:
    """A texture being painted: an RGB image and the mapping from frontal coordinates to its pixels."""

    def __init__(self, side: int, half_width: float) -> None:
        self.side = side
        self.unit = side / (BOTTOM - TOP)
        self.half_width = half_width
        self.image: Bytes = np.empty((side, side, 3), np.uint8)

    def pixels(self, x: Any, y: Any) -> NDArray[np.int32]:
        """Fixed-point pixel coordinates (n, 2) of frontal points."""
        fixed = np.empty((np.size(x), 2))
        fixed[:, 0] = np.arcsin(np.minimum(np.maximum(np.divide(x, self.half_width), -0.99), 0.99))
        fixed[:, 0] = (fixed[:, 0] + PHI_MAX) * (self.side / (2 * PHI_MAX))
        fixed[:, 1] = np.subtract(y, TOP) * self.unit
        return np.rint((fixed - 0.5) * (1 << SHIFT)).astype(np.int32)

    def fill(self, x: Any, y: Any, colour: Any, image: Bytes | None = None) -> None:
        """A filled closed curve."""
        target = self.image if image is None else image
        cv2.fillPoly(target, [self.pixels(x, y)], _rgb(colour), cv2.LINE_AA, SHIFT)

    def line(self, x: Any, y: Any, colour: Any, width: float) -> None:
        """A ribbon along an open curve; ``width`` in half head widths, kept visible at small sizes by fading."""
        half = max(width, 0.7 / self.unit) / 2
        x, y = np.asarray(x), np.asarray(y)
        taper = half * _taper(len(x))
        self.fill(np.concatenate([x, x[::-1]]), np.concatenate([y - taper, (y + taper)[::-1]]), colour)

    def dot(self, x: float, y: float, radius: float, colour: Any, image: Bytes | None = None) -> None:
        """A filled circle."""
        target = self.image if image is None else image
        centre = self.pixels(x, y)
        r = max(1, round(radius * self.unit * (1 << SHIFT)))
        cv2.circle(target, (int(centre[0, 0]), int(centre[0, 1])), r, _rgb(colour), -1, cv2.LINE_AA, SHIFT)

    def window(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice]:
        """Rows and columns that hold a box, clipped to the texture."""
        corners = self.pixels([x0, x1], [y0, y1]) >> SHIFT
        (c0, r0), (c1, r1) = np.clip(corners, 0, self.side - 2)
        return slice(int(r0), int(r1) + 2), slice(int(c0), int(c1) + 2)

    def blend(self, over: Bytes, mask: Bytes, where: tuple[slice, slice]) -> None:
        """Lays ``over`` on the image inside ``where`` by a 0..255 mask of the whole texture."""
        alpha = mask[where][..., None].astype(np.float32) / 255
        part = self.image[where]
        part[...] = part + alpha * (over[where].astype(np.float32) - part)


@lru_cache(maxsize=32)
def _taper(n: int) -> NDArray[np.float64]:
    return np.sin(np.linspace(0.15, np.pi - 0.15, n))


def _rgb(colour: Any) -> tuple[float, float, float]:
    r, g, b = (clamp(float(c), 0.0, 255.0) for c in colour)
    return r, g, b
