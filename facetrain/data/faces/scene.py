"""From a painted head to a scene: light, hair, ears, neck, clothes, accessories and background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facetrain import keyed
from facetrain.data.faces.canvas import SHIFT, Bytes, hair_colour, noise_tile, palette, skin_colour
from facetrain.data.faces.skull import Floats, Pose, Surface, cast, clamp, hull, outline, relief, texture_coordinates

if TYPE_CHECKING:
    from facetrain.data.faces.traits import Identity, Nuisance

_CLOTH = [
    (30, 32, 40),
    (205, 205, 210),
    (130, 34, 40),
    (40, 62, 115),
    (54, 92, 62),
    (182, 152, 66),
    (92, 72, 112),
    (226, 222, 212),
]
_ROOM = [(42, 44, 48), (112, 100, 90), (192, 192, 196), (122, 152, 190), (92, 120, 82), (162, 122, 92), (230, 232, 235)]
CLOTH, ROOM = np.array(_CLOTH, float), np.array(_ROOM, float)
CIRCLE = np.linspace(0, 2 * np.pi, 19)[:-1]
LINE = 512  # entries of a hairline table


class Scene:
    """A photo being composed, back to front."""

    def __init__(self, person: Identity, photo: Nuisance, pose: Pose, key: int) -> None:
        self.person, self.photo, self.pose, self.key = person, photo, pose, key
        self.size = pose.size
        self.image: Bytes = np.zeros((self.size, self.size, 3), np.uint8)
        direction = np.array([np.sin(photo.light_x), -np.sin(photo.light_y), 0.0])
        direction[2] = np.sqrt(max(0.08, 1 - direction @ direction))
        self.light = (direction / np.linalg.norm(direction)).astype(np.float32)
        self.hard = clamp(photo.light_hard, 0.1, 0.95)
        self.hair_rgb = hair_colour(person)
        self.skin_rgb = skin_colour(person, photo)

    def draws(self, purpose: int, count: int) -> NDArray[np.float64]:
        """``count`` uniforms of this photo for one purpose."""
        return keyed.uniform(self.key, purpose, np.arange(count))

    def shade(self, x: Any, y: Any, z: Any) -> Any:
        """Brightness of a surface with normal (x, y, z): wrapped Lambert over ambient light from above."""
        facing = x * self.light[0] + y * self.light[1] + z * self.light[2]
        direct = np.clip((facing + np.float32(0.25)) * np.float32(0.8), 0, 1)
        ambient = np.float32(0.82) - np.float32(0.18) * y
        return np.float32(1.18 * self.hard) * direct + np.float32(1 - self.hard) * ambient

    def enlarge(self, grid: Floats) -> Floats:
        """From the solving grid to the image."""
        if grid.shape[0] == self.size:
            return grid
        return np.asarray(cv2.resize(grid, (self.size, self.size), interpolation=cv2.INTER_LINEAR), np.float32)

    def lay(self, colour: Any, alpha: Floats) -> None:
        """Blends a colour (3,) or image over the photo; alpha (size, size) in 0..1."""
        rows = np.flatnonzero(alpha.max(axis=1) > 0.004)
        if not len(rows):
            return
        band = slice(int(rows[0]), int(rows[-1]) + 1)
        over = np.asarray(colour, np.float32)
        part = self.image[band].astype(np.float32)
        part += alpha[band, :, None] * ((over if over.ndim == 1 else over[band]) - part)
        self.image[band] = np.clip(part, 0, 255)

    def fill(self, points: NDArray[np.float64], colour: Any, opacity: float = 1.0, soft: float = 0.0) -> None:
        """A polygon given in pixels, (n, 2); ``soft`` blurs its edge, in pixels."""
        fixed = np.rint(points * (1 << SHIFT)).astype(np.int32)
        rgb = [float(c) for c in np.clip(colour, 0, 255)]
        if opacity >= 1 and soft == 0:
            cv2.fillPoly(self.image, [fixed], rgb, cv2.LINE_AA, SHIFT)
            return
        mask: NDArray[Any] = np.zeros((self.size, self.size), np.uint8)
        cv2.fillPoly(mask, [fixed], (255 * opacity,), cv2.LINE_AA, SHIFT)
        if soft > 0.3:
            mask = cv2.GaussianBlur(mask, (0, 0), soft)
        self.lay(rgb, mask.astype(np.float32) * np.float32(1 / 255))

    def background(self) -> None:
        """A wall or an out-of-focus room."""
        u = self.draws(1, 16)
        first, second = palette(ROOM, self.photo.background), palette(ROOM, u[0])
        cells = 12
        ramp = np.linspace(0, 1, cells)[None, :] * u[1] + np.linspace(0, 1, cells)[:, None] * (1 - u[1])
        small = first + (0.6 * ramp)[..., None] * (second - first)
        if self.photo.clutter:
            for i in range(3):
                r, c = (u[2 + 4 * i : 4 + 4 * i] * cells).astype(int)
                h, w = (1 + u[4 + 4 * i : 6 + 4 * i] * cells * 0.6).astype(int)
                small[r : r + h, c : c + w] = palette(ROOM, (u[2 + i] * 7) % 1)
        a, b = int(u[14] * 200), int(u[15] * 200)
        small = small * (1 + 0.12 * noise_tile("cloud")[a : a + cells * 4 : 4, b : b + cells * 4 : 4, None])
        way = cv2.INTER_CUBIC if self.photo.clutter < 0.6 else cv2.INTER_LINEAR
        self.image[...] = np.clip(
            cv2.resize(small.astype(np.float32), (self.size, self.size), interpolation=way), 0, 255
        )

    @property
    def hair_end(self) -> float:
        """Height at which the hair beside the face ends, in this photo."""
        return clamp(self.person.hair_length + self.photo.hair_cut, -0.5, 2.3)

    def long_hair(self) -> None:
        """The hair behind the neck."""
        if self.hair_end < 0.75:
            return
        half = self.person.face_width + max(self.person.hair_side, 0.02) * self.photo.hair_volume
        t = np.linspace(0, 1, 11)
        v = -0.4 + (self.hair_end + 0.4) * t
        curl = max(self.person.hair_wave, 0.0)
        out = half * (0.9 + 0.25 * t + 0.06 * curl * np.sin(5 * v)) * np.sqrt(np.maximum(1 - t**6, 0.1))
        x = np.concatenate([-out, out[::-1]])
        y = np.concatenate([v, v[::-1]])
        body = self.pose.project(x, y, -0.35)
        self.fill(body, self.hair_rgb * 0.55 * float(self.shade(0.0, 0.0, 1.0)))

    def neck(self) -> None:
        """Neck and shoulders, under the chin's shadow."""
        person, u = self.person, self.draws(2, 4)
        wide = (0.56 + 0.5 * (0.3 - person.jaw_taper)) * person.face_width
        chin = person.chin_length
        top = self.pose.project([-wide, wide], 0.7, -0.25)
        centre = 0.6 * self.pose.project([0.0], chin + 0.22, -0.3)[0] + 0.4 * np.array([0.5, 0.93]) * self.size
        scale = self.pose.scale
        across = np.array([wide * 1.05 * scale, 0])
        left, right = centre - across, centre + across
        bright = float(self.shade(0.0, 0.1, 1.0))
        skin = self.skin_rgb * bright
        drop = np.array([0, 0.9 * scale])
        neck = np.array([top[0], top[1], right, right + drop, left + drop, left])
        self.fill(neck, skin * 0.74)
        shade = self.pose.project(np.cos(CIRCLE) * 0.72, chin - 0.1 + 0.42 * np.sin(CIRCLE), 0.0)
        self.fill(shade, skin * 0.4, 0.7, 0.12 * scale)
        collar = centre + np.array([0, (0.02 + 0.2 * u[0]) * scale])
        wide = (1.9 + 0.5 * u[1]) * scale
        slope = (0.35 + 0.25 * u[2]) * scale
        body = np.array(
            [
                [-wide, slope],
                [-0.6 * scale, -0.16 * scale],
                [0, (0.1 + 0.3 * u[3]) * scale],
                [0.6 * scale, -0.16 * scale],
                [wide, slope],
                [wide, 4 * scale],
                [-wide, 4 * scale],
            ]
        )
        self.fill(collar + body, palette(CLOTH, self.photo.clothes) * bright * 0.9)

    def ear(self, side: float) -> None:
        """One ear; ``side`` is -1 or 1."""
        person = self.person
        x = side * (0.94 * person.face_width + 0.6 * max(person.ear_flare, 0.02) * (1 - np.cos(CIRCLE)) * 0.9)
        tall = person.ear_size * np.sin(CIRCLE) * (1 - 0.12 * np.cos(CIRCLE))
        z = -0.05 - 0.13 * (1 - np.cos(CIRCLE))
        bright = float(self.shade(np.float32(0.6 * side), np.float32(0.0), np.float32(0.8)))
        colour = self.skin_rgb * bright * (0.92, 0.84, 0.82)
        self.fill(self.pose.project(x, 0.14 + tall, z), colour)
        middle = x.mean()
        self.fill(self.pose.project(middle + 0.55 * (x - middle), 0.1 + 0.6 * tall, z), colour * 0.74)

    def face(self, texture: Bytes) -> None:
        """The face: texture, relief and light."""
        gape = clamp(self.photo.mouth_open, 0, 1.3)
        surface = cast(self.pose, outline(self.person, gape), relief(self.person, self.photo))
        columns, rows = texture_coordinates(self.enlarge(surface.phi), self.enlarge(surface.v), texture.shape[0])
        colour = cv2.remap(texture, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        nx, ny, nz = surface.normal
        bright = self.shade(nx, ny, nz)
        half = self.light + np.array([0, 0, 1], np.float32)
        half /= np.linalg.norm(half)
        glint = np.clip(nx * half[0] + ny * half[1] + nz * half[2], 0, 1) ** 18
        shine = self.enlarge((np.float32(150 * max(self.photo.shine, 0.0) * self.hard) * glint).astype(np.float32))
        lit = colour * self.enlarge(bright.astype(np.float32))[..., None] + shine[..., None]
        self.lay(lit, self.coverage(surface))

    def coverage(self, surface: Surface) -> Floats:
        """How much of each pixel a surface covers, 0..1."""
        return np.clip(self.enlarge(surface.inside) * np.float32(self.pose.scale) + np.float32(0.5), 0, 1)

    def shell(
        self, top: float, side: float, edge: NDArray[np.float64], colour: Any, streaks: float, ragged: float
    ) -> None:
        """Hair or a hat: an inflated head, kept above ``edge``, a table of heights over azimuths -pi..pi."""
        surface = cast(self.pose, hull(self.person, top, side), None)
        phi, v = self.enlarge(surface.phi), self.enlarge(surface.v)
        wave = np.float32(6 * max(self.person.hair_wave, 0.0)) * np.sin(v * np.float32(9.0))
        columns = (phi + np.float32(3.2)) * np.float32(38.0) + wave
        rows = (v + np.float32(2.4)) * np.float32(50.0 if streaks else 0.0)
        grain = cv2.remap(noise_tile("hair"), columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        index = np.clip((phi + np.float32(np.pi)) * np.float32(LINE / (2 * np.pi)), 0, LINE - 1).astype(np.int32)
        margin = np.take(edge.astype(np.float32), index) - v + np.float32(ragged) * grain
        alpha = np.clip(margin * np.float32(0.45 * self.pose.scale) + np.float32(0.5), 0, 1) * self.coverage(surface)
        nx, ny, nz = surface.normal
        bright = self.enlarge(self.shade(nx, ny, nz).astype(np.float32)) * (1 + np.float32(streaks) * grain)
        self.lay(np.asarray(colour, np.float32) * bright[..., None], alpha)

    def hair(self) -> None:
        """The hair on the head, with its line over forehead and temples."""
        person, photo = self.person, self.photo
        phi = np.linspace(-np.pi, np.pi, LINE)
        side = np.abs(phi)
        part = person.parting + photo.hair_style
        front = -person.hairline + person.hairline_peak * np.exp(-((phi / 0.16) ** 2))
        front = front - max(person.receding, 0) * (np.exp(-(((side - 0.5) / 0.22) ** 2)) + 0.3)
        fringe = max(person.fringe + photo.hair_style, 0.0)
        front = front + fringe * (1 - np.exp(-(((phi - part) / 0.3) ** 2))) * (0.8 + 0.25 * np.tanh(3 * (phi - part)))
        end = self.hair_end
        low = np.where(side > 1.65, max(end, 0.55), max(end, -0.1))
        blend = 1 / (1 + np.exp(-(side - (1.05 - 0.1 * fringe - 0.13 * clamp(end, 0.0, 1.0))) / 0.05))
        edge = front + blend * (low - front)
        volume = max(photo.hair_volume, 0.2) * min(1.0, 0.6 + 0.4 * max(end + 0.5, 0))
        top = max(person.hair_top, 0.02) * volume * (0.4 if photo.hat else 1.0)
        self.shell(top, max(person.hair_side, 0.02) * volume * 0.8, edge, self.hair_rgb, 0.22, 0.04)
