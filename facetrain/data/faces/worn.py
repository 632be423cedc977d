"""What people wear and what gets between them and the camera."""

from __future__ import annotations

import cv2
import numpy as np

from facetrain.data.faces.canvas import SHIFT, palette
from facetrain.data.faces.scene import CIRCLE, CLOTH, LINE, Scene


def put_on(scene: Scene) -> None:
    """Adds what this photo has of masks, glasses, hats and things in front of the face."""
    if scene.photo.mask:
        face_mask(scene)
    if scene.photo.glasses or scene.photo.sunglasses:
        glasses(scene)
    if scene.photo.hat:
        hat(scene)
    if scene.photo.occluder:
        occluder(scene)


def hat(scene: Scene) -> None:
    """A woollen hat, or a cap with its peak."""
    u = scene.draws(3, 3)
    colour = palette(CLOTH, u[0])
    peaked = scene.photo.hat > 0.4
    phi = np.linspace(-np.pi, np.pi, LINE)
    edge = np.full(LINE, -0.62 - 0.25 * u[1]) + 0.25 * (np.abs(phi) / np.pi)
    scene.shell(0.14 + 0.1 * u[2], 0.1, edge, colour, 0.0 if peaked else 0.08, 0.0)
    if peaked:
        t = np.linspace(-1.15, 1.15, 11)
        wide, deep = scene.person.face_width + 0.08, scene.person.skull_depth + 0.08
        y = -0.6 - 0.25 * u[1]
        rim = scene.pose.project(wide * np.sin(t), y, deep * np.cos(t))
        tip = scene.pose.project(0.95 * np.sin(t), y + 0.1, deep + 0.45 * np.cos(t * 1.2))
        scene.fill(np.concatenate([rim, tip[::-1]]), colour * 0.7 * float(scene.shade(0.0, -0.5, 0.8)))


def glasses(scene: Scene) -> None:
    """Spectacles or sunglasses: two rims, a bridge and the temples."""
    person = scene.person
    u = scene.draws(4, 4)
    frame = palette(CLOTH, u[0]) * 0.6 if u[1] < 0.5 else np.array([24.0, 22.0, 22.0])
    power = 0.45 + 0.55 * u[2]
    wide, tall = 0.31 + 0.07 * u[3], 0.19 + 0.1 * u[2]
    c, s = np.cos(CIRCLE), np.sin(CIRCLE)
    x, y = wide * np.sign(c) * np.abs(c) ** power, tall * np.sign(s) * np.abs(s) ** power
    front = person.skull_depth + 0.06
    thick = max(1, round((0.03 + 0.05 * scene.photo.glasses) * scene.pose.scale))
    curves = []
    for side in (-1.0, 1.0):
        centre = side * (person.eye_spacing + 0.03)
        rim = scene.pose.project(centre + x, 0.03 + y, front - 0.45 * (np.abs(centre + x)) ** 2)
        dark = bool(scene.photo.sunglasses)
        scene.fill(rim, (18, 20, 24) if dark else (235, 240, 245), 0.88 if dark else 0.1)
        curves.append(rim)
        if side * scene.pose.yaw < 0.25:
            curves.append(
                scene.pose.project([centre + side * wide, side * (person.face_width + 0.03)], 0.0, [front - 0.4, 0.0])
            )
    curves.append(scene.pose.project([-0.16, 0.0, 0.16], [-0.02, -0.05, -0.02], front))
    for number, curve in enumerate(curves):
        fixed = np.rint(curve * (1 << SHIFT)).astype(np.int32)
        closed = len(curve) == len(CIRCLE)
        rgb = [float(v) for v in np.clip(frame * (0.8 + 0.05 * number), 0, 255)]
        cv2.polylines(scene.image, [fixed], closed, rgb, thick, cv2.LINE_AA, SHIFT)


def face_mask(scene: Scene) -> None:
    """A surgical mask over nose and mouth."""
    person, kind = scene.person, scene.photo.mask
    colour = palette(np.array([(236, 238, 240), (150, 190, 210), (40, 42, 46)], float), kind)
    x = np.array([-0.88, -0.4, 0, 0.4, 0.88, 0.78, 0.4, 0, -0.4, -0.78])
    y = np.array([0.36, 0.34, 0.28, 0.34, 0.36, 1.1, 1.5, 1.6, 1.5, 1.1])
    z = person.skull_depth * np.array([0.3, 1.0, 1.22, 1.0, 0.3, 0.4, 0.85, 0.98, 0.85, 0.4])
    outer = scene.pose.project(x * person.face_width, y, z)
    scene.fill(outer, colour * float(scene.shade(0.0, 0.1, 1.0)))
    fold = scene.pose.project(x[1:4] * person.face_width, 0.9, z[1:4] + 0.1)
    width = np.array([0, 0.04 * scene.pose.scale])
    scene.fill(np.concatenate([fold, (fold + width)[::-1]]), colour * 0.75)


def occluder(scene: Scene) -> None:
    """A hand, a microphone, somebody's shoulder: a blob in front of the face."""
    u = scene.draws(5, 6)
    kind = scene.photo.occluder
    colour = scene.skin_rgb * 0.8 if kind < 0.4 else palette(CLOTH, u[0])
    angle = np.pi * u[1]
    long, short = (0.5 + 0.5 * u[2]), (0.14 + 0.22 * u[3])
    x = long * np.sign(np.cos(CIRCLE)) * np.abs(np.cos(CIRCLE)) ** 0.5
    y = short * np.sign(np.sin(CIRCLE)) * np.abs(np.sin(CIRCLE)) ** 0.5
    x, y = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    away = scene.pose.project(scene.photo.occluder_x * 1.4 + x, scene.photo.occluder_y * 1.2 + 0.2 + y, 1.4)
    scene.fill(away, colour * float(scene.shade(0.0, 0.0, 1.0)), 0.98, 0.03 * scene.pose.scale)
