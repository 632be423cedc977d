"""What a camera does to a synthetic scene: exposure, colour, blur, noise, low resolution, JPEG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from facetrain import keyed
from facetrain.data.faces.canvas import noise_tile

if TYPE_CHECKING:
    from facetrain.data.faces.traits import Nuisance


def camera(image: NDArray[np.uint8], photo: Nuisance, key: int) -> NDArray[np.uint8]:
    """The photo as stored, same shape; ``key`` picks the noise."""
    size = image.shape[0]
    out: NDArray[Any] = image
    if photo.low_resolution:
        small = max(12, round(size * (0.7 - 0.4 * photo.low_resolution)))
        out = cv2.resize(out, (small, small), interpolation=cv2.INTER_AREA)
        out = cv2.resize(out, (size, size), interpolation=cv2.INTER_LINEAR)
    if photo.blur:
        out = cv2.GaussianBlur(out, (0, 0), size / 112 * (0.4 + 1.5 * photo.blur))
    if photo.motion:
        length = max(2, round(size / 112 * (3 + 7 * photo.motion)))
        kernel = np.eye(length, dtype=np.float32) if photo.motion < 0.3 else np.zeros((length, length), np.float32)
        if photo.motion >= 0.3:
            kernel[length // 2] = 1
        out = cv2.filter2D(out, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)
    pixels: NDArray[Any] = cv2.transform(out.astype(np.float32), _colour(photo))
    if photo.noise:
        row, column = (keyed.uniform(key, 9, np.arange(2)) * 256).astype(int)
        tile = noise_tile("white")[row : row + size, column : column + size]
        pixels += (np.float32(9 * photo.noise**2) * tile)[..., None]
    result = np.clip(pixels, 0, 255).astype(np.uint8)
    if photo.jpeg:
        quality = int(85 - 60 * photo.jpeg)
        coded = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        result = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return result


def _colour(photo: Nuisance) -> NDArray[np.float32]:
    """White balance, exposure, contrast and saturation as one 3 x 4 matrix."""
    luma = np.array([0.299, 0.587, 0.114])
    saturation = 0.0 if photo.grey else max(0.05, photo.saturation)
    mix = (1 - saturation) * np.ones((3, 1)) * luma + saturation * np.eye(3)
    balance = np.array([1 + photo.light_warm, 1 + photo.light_green, 1 - photo.light_warm])
    contrast = max(0.5, photo.contrast)
    matrix = contrast * float(np.exp(photo.exposure)) * mix * balance[None, :]
    return np.hstack([matrix, np.full((3, 1), 110 * (1 - contrast))]).astype(np.float32)
