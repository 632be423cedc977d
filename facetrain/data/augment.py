"""The field's light augmentations on a decoded batch; each draw is keyed by (seed, epoch, image) alone.

The order is fixed: crop, low resolution, blur, colour, grey, erase, flip. What happens to an image depends neither on
the images beside it nor on which other augmentations are on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from facetrain import keyed
from facetrain.config import AugmentConfig

_LUMA = np.array([0.299, 0.587, 0.114])
_ERASE_LEVEL = 128

Change: TypeAlias = Callable[[NDArray[np.uint8]], None]
"""What is done in place to one (H, W, 3) image."""

_purpose = functools.cache(keyed.text_key)


def augment(
    images: NDArray[np.uint8], config: AugmentConfig, seed: int, epoch: int, indices: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Augment a batch in place.

    Args:
        images: (n, H, W, 3) RGB uint8, C-contiguous; overwritten.
        config: probabilities and strengths.
        seed: the run's seed.
        epoch: the epoch the images are drawn for.
        indices: (n,) image numbers in the data set, the key of each image's draws.

    Returns:
        ``images`` itself.
    """
    assert images.dtype == np.uint8
    assert images.ndim == 4
    assert len(images) == len(indices)
    for image, its_changes in zip(images, changes(config, seed, epoch, indices), strict=True):
        for change in its_changes:
            change(image)
    return images


def changes(config: AugmentConfig, seed: int, epoch: int, indices: NDArray[np.int64]) -> list[list[Change]]:
    """What :func:`augment` does to each image, in order; for who has it in the processor's cache just now."""
    operations: tuple[tuple[str, float, int, Callable[..., None]], ...] = (
        ("crop", config.crop, 3, functools.partial(_crop, smallest=config.crop_scale)),
        ("low resolution", config.low_resolution, 1, _low_resolution),
        ("blur", config.blur, 1, _blur),
        ("color", config.color, 3, functools.partial(_color, strength=config.color_strength)),
        ("gray", config.gray, 0, _gray),
        ("erase", config.erase, 4, _erase),
        ("flip", config.flip, 0, _flip),
    )
    found: list[list[Change]] = [[] for _ in indices]
    for name, probability, draws, operation in operations:
        if probability == 0 or len(indices) == 0:
            continue
        # (n, 1 + draws): whether, then how.
        u = keyed.uniform(seed, _purpose(name), epoch, np.asarray(indices)[:, None], np.arange(1 + draws))
        for row in np.flatnonzero(u[:, 0] < probability).tolist():
            found[row].append(functools.partial(operation, u=u[row, 1:]))
    return found


def _flip(image: NDArray[np.uint8], u: NDArray[np.float64]) -> None:
    cv2.flip(image, 1, dst=image)


def _crop(image: NDArray[np.uint8], u: NDArray[np.float64], smallest: float) -> None:
    """A window of ``smallest``..1 of each side at a random place, enlarged to the whole."""
    height, width = image.shape[:2]
    scale = smallest + (1 - smallest) * u[0]
    h, w = max(1, round(scale * height)), max(1, round(scale * width))
    top, left = int(u[1] * (height - h + 1)), int(u[2] * (width - w + 1))
    window = image[top : top + h, left : left + w]
    image[...] = cv2.resize(window, (width, height), interpolation=cv2.INTER_LINEAR)


def _low_resolution(image: NDArray[np.uint8], u: NDArray[np.float64]) -> None:
    """Shrink to 25..90 % of each side and enlarge again."""
    height, width = image.shape[:2]
    scale = 0.25 + 0.65 * u[0]
    small = cv2.resize(
        image, (max(1, round(scale * width)), max(1, round(scale * height))), interpolation=cv2.INTER_AREA
    )
    image[...] = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _blur(image: NDArray[np.uint8], u: NDArray[np.float64]) -> None:
    """Gaussian blur, sigma 0.3..1.5 pixels of a 112-pixel image."""
    sigma = (0.3 + 1.2 * u[0]) * image.shape[0] / 112
    image[...] = cv2.GaussianBlur(image, (0, 0), float(sigma))


def _color(image: NDArray[np.uint8], u: NDArray[np.float64], strength: float) -> None:
    """Brightness, contrast about the mean luma, and saturation, each by a factor of 1 - strength..1 + strength."""
    brightness, contrast, saturation = 1 + strength * (2 * u - 1)
    mean = float(image.reshape(-1, 3).mean(axis=0) @ _LUMA)
    # The three are one affine map of a pixel: luma weights sum to 1, so saturation leaves the grey offset as it is.
    matrix = np.empty((3, 4))
    matrix[:, :3] = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * _LUMA)
    matrix[:, 3] = brightness * (1 - contrast) * mean
    image[...] = cv2.transform(image, matrix)


def _gray(image: NDArray[np.uint8], u: NDArray[np.float64]) -> None:
    image[...] = cv2.transform(image, np.tile(_LUMA, (3, 1)))


def _erase(image: NDArray[np.uint8], u: NDArray[np.float64]) -> None:
    """A grey rectangle over 2..20 % of the image, sides in a ratio of 1:2 to 2:1."""
    height, width = image.shape[:2]
    area, ratio = 0.02 + 0.18 * u[0], 2.0 ** (2 * u[1] - 1)
    h = min(height, max(1, round(height * float(np.sqrt(area * ratio)))))
    w = min(width, max(1, round(width * float(np.sqrt(area / ratio)))))
    top, left = int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1))
    image[top : top + h, left : left + w] = _ERASE_LEVEL
