"""Rendered faces: any number of people, any number of photos of each, from a seed and nothing else.

A person is an :class:`Identity` (some sixty continuous traits), a photo adds a :class:`Nuisance` (pose, light,
expression, things worn, camera). The drawing is :mod:`facetrain.data.faces`: ``skull`` (what a pixel sees of a turned
head), ``skin`` (its painted texture), ``scene`` (light, hair, neck, background), ``worn`` and ``camera``. The faces are
for demonstrations and tests of training code; nothing measured on them says anything about people.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facetrain import keyed
from facetrain.data.faces import worn
from facetrain.data.faces.camera import camera
from facetrain.data.faces.scene import Scene
from facetrain.data.faces.skin import face_texture
from facetrain.data.faces.skull import Pose
from facetrain.data.faces.traits import Identity, Nuisance
from facetrain.errors import InputError

__all__ = ["LARGEST", "SMALLEST", "Identity", "Nuisance", "render"]

SMALLEST, LARGEST = 24, 256
_SCENE = keyed.text_key("synthetic scene")


def render(seed: int, identity: int, image: int, size: int, difficulty: float = 1.0) -> NDArray[np.uint8]:
    """Photo ``image`` of person ``identity``: a pure function, equal in every process.

    Args:
        seed: names the population.
        identity: 0 or more; two numbers are two people.
        image: 0 or more; two numbers are two photos of one person.
        size: pixels a side, 24..256.
        difficulty: factor on all that is not identity; 0 leaves only clothes and background.

    Returns:
        (size, size, 3) uint8 RGB.

    Raises:
        InputError: for a size out of range or a negative number.
    """
    if not SMALLEST <= size <= LARGEST:
        raise InputError(f"render: size = {size} is not in {SMALLEST}..{LARGEST}; choose a size in that range")
    if min(identity, image) < 0 or not difficulty >= 0:
        raise InputError(
            f"render: identity = {identity}, image = {image} and difficulty = {difficulty:g} must be 0 or more"
        )
    person = Identity.draw(seed, identity)
    photo = Nuisance.draw(seed, identity, image, difficulty)
    scene = Scene(person, photo, Pose.of(person, photo, size), int(keyed.bits(seed, _SCENE, identity, image)))
    scene.background()
    scene.long_hair()
    scene.neck()
    far = 1.0 if photo.yaw > 0 else -1.0
    scene.ear(far)
    scene.face(face_texture(person, photo, size))
    scene.ear(-far)
    scene.hair()
    worn.put_on(scene)
    return camera(scene.image, photo, scene.key)
