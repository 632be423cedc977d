"""Encoded images to pixels and back: JPEG, PNG, PGM/PPM, BMP and WebP in, RGB uint8 out.

Every size is read from the header first, so a few bytes that promise a giant image cost neither time nor memory.
"""

from __future__ import annotations

import functools
import struct
import zlib
from typing import Literal, TypeAlias

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from facetrain.errors import InputError

Fit: TypeAlias = Literal["crop", "stretch", "pad"]
Buffer: TypeAlias = bytes | memoryview

MAX_SIDE = 4096
"""Pixels a side of an image to train or evaluate on; so at most 16.8 Mpx."""
MAX_PHOTO_SIDE, MAX_PHOTO_PIXELS = 12_000, 100_000_000
"""Of a camera's photo, which is packed smaller."""
_PNG = b"\x89PNG\r\n\x1a\n"
_HEADER_BYTES = 512
_EXIF_BYTES = 4096


def decode(buffer: Buffer, size: int | None = None, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Decode one image.

    Args:
        buffer: the encoded image, any bytes-like object; not copied.
        size: pixels a side of the result; an image of another size is resized to it. None keeps the image's own size.
        out: (size, size, 3) uint8, C-contiguous: where the pixels go; needs ``size``.

    Returns:
        (H, W, 3) RGB uint8; ``out`` itself where it was given.

    Raises:
        InputError: not an image of a known kind, damaged, cut short, or larger than 4096 a side. The message does not
            say where the image came from: the caller knows.
    """
    assert out is None or (size is not None and out.shape == (size, size, 3) and out.flags.c_contiguous)
    height, width = check_size(buffer)
    if not _is_jpeg(buffer):
        # Cameras' orientation tags are left alone here, as in JPEG: training images are crops that stand upright.
        image = _decode_opencv(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    elif out is not None and (height, width) == out.shape[:2]:
        # The usual case, a crop of the network's size, goes straight into the batch.
        _decode_jpeg(buffer, out)
        return out
    else:
        image = _decode_jpeg(buffer, None)
    if size is not None:
        image = resize(image, size)
    if out is None:
        return image
    np.copyto(out, image)
    return out


def decode_upright(buffer: Buffer) -> NDArray[np.uint8]:
    """Decode a photo at its own size, turned as its camera's orientation tag (Exif in JPEG, PNG, WebP) says.

    Cut and aligned training images need none of this: :func:`decode` leaves their tags, if any, alone.

    Returns:
        (H, W, 3) RGB uint8.

    Raises:
        InputError: as :func:`decode`, but photos may have 12,000 pixels a side and 100 Mpx.
    """
    height, width = image_size(buffer)
    if min(height, width) < 1 or max(height, width) > MAX_PHOTO_SIDE or height * width > MAX_PHOTO_PIXELS:
        raise InputError(
            f"the photo is {width} x {height} pixels; at most {MAX_PHOTO_SIDE} a side and {MAX_PHOTO_PIXELS // 10**6} "
            "Mpx are read: shrink it first"
        )
    if _is_jpeg(buffer):
        image = _decode_jpeg(buffer, None)  # OpenCV would take a damaged one
        if b"Exif\0\0" not in bytes(memoryview(buffer)[:_EXIF_BYTES]):
            return image
    return _decode_opencv(buffer, cv2.IMREAD_COLOR)


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 stretched to (size, size, 3): by area where it shrinks, else bilinear."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    shrinks = height >= size and width >= size
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def encode_jpeg(image: NDArray[np.uint8], quality: int = 95) -> bytes:
    """(H, W, 3) RGB uint8 to JPEG bytes, chroma at half resolution (4:2:0) as OpenCV and mxnet write it."""
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return bytes(encoded)


def image_size(buffer: Buffer) -> tuple[int, int]:
    """(height, width) in pixels from the header alone.

    Raises:
        InputError: no readable header of a JPEG, PNG, PGM/PPM, BMP or WebP.
    """
    if len(buffer) == 0:
        raise InputError("the image is empty: 0 bytes")
    if _is_jpeg(buffer):
        try:
            height, width = simplejpeg.decode_jpeg_header(buffer, strict=False)[:2]
        except (ValueError, KeyError) as error:  # KeyError: a colour space that simplejpeg does not know
            raise InputError(f"the JPEG header is damaged: {_one_line(error)}") from None
        return int(height), int(width)
    header = bytes(memoryview(buffer)[:_HEADER_BYTES])
    try:
        found = _other_size(header)
    except (struct.error, ValueError, IndexError):
        found = None
    if found is None:
        raise InputError(f"not a readable JPEG, PNG, PGM/PPM, BMP or WebP image (it starts with {header[:8]!r})")
    return found


def check_size(buffer: Buffer) -> tuple[int, int]:
    """:func:`image_size` of an image that is small enough to train or evaluate on; InputError for others."""
    height, width = image_size(buffer)
    if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise InputError(
            f"the image is {width} x {height} pixels; at most {MAX_SIDE} a side are read: shrink it first, as "
            "facetrain data pack does"
        )
    return height, width


def _is_jpeg(buffer: Buffer) -> bool:
    return len(buffer) >= 2 and buffer[0] == 0xFF and buffer[1] == 0xD8


def _decode_jpeg(buffer: Buffer, out: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    try:
        return np.asarray(simplejpeg.decode_jpeg(buffer, colorspace="RGB", buffer=out, strict=True))
    except (ValueError, KeyError) as error:
        raise InputError(f"the JPEG is damaged: {_one_line(error)}") from None


def _decode_opencv(buffer: Buffer, flags: int) -> NDArray[np.uint8]:
    _silence_opencv()
    _check_png(buffer)
    try:
        bgr = cv2.imdecode(np.frombuffer(buffer, np.uint8), flags)
    except cv2.error as error:
        raise InputError(f"the image is damaged: {_one_line(error)}") from None
    if bgr is None:
        raise InputError("the image is damaged or cut short")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _check_png(buffer: Buffer) -> None:
    """Refuse a PNG that is cut short or whose checksums are wrong: libpng would print a line of its own."""
    data = memoryview(buffer)
    if data[:8] != _PNG:
        return
    at, kind = 8, b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise InputError(f"the PNG is cut short: {len(data)} bytes and no end")
        length, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        end = at + 8 + length
        if not kind.isalpha():
            raise InputError(f"the PNG is damaged: no chunk at byte {at} of the image")
        if end + 4 > len(data):
            raise InputError(f"the PNG is cut short: {len(data)} bytes and no end")
        # Of every chunk, also of those the image could do without: damage to a name can make one of what it needs.
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise InputError(f"the PNG is damaged: a wrong checksum at byte {at} of the image")
        at = end + 4


@functools.cache
def _silence_opencv() -> None:
    """OpenCV prints its own warnings about a damaged file; ours says where the file is."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _other_size(header: bytes) -> tuple[int, int] | None:
    """(height, width) of a PNG, BMP, WebP or PNM header; None for anything else."""
    if header.startswith(_PNG):
        width, height = struct.unpack_from(">II", header, 16)
        return height, width
    if header.startswith(b"BM"):
        if struct.unpack_from("<I", header, 14)[0] == 12:
            width, height = struct.unpack_from("<HH", header, 18)
        else:
            width, height = struct.unpack_from("<ii", header, 18)
        return abs(height), abs(width)
    if header.startswith(b"RIFF") and header[8:12] == b"WEBP":
        return _webp_size(header)
    if header[:1] == b"P" and header[1:2] in b"123456":
        return _pnm_size(header)
    return None


def _webp_size(header: bytes) -> tuple[int, int] | None:
    """The three chunk kinds of the WebP container (RFC 9649, sections 2.5 to 2.7)."""
    kind = header[12:16]
    if kind == b"VP8 " and header[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", header, 26)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L" and header[20:21] == b"\x2f":
        packed = struct.unpack_from("<I", header, 21)[0]
        return ((packed >> 14) & 0x3FFF) + 1, (packed & 0x3FFF) + 1
    if kind == b"VP8X" and len(header) >= 30:
        return int.from_bytes(header[27:30], "little") + 1, int.from_bytes(header[24:27], "little") + 1
    return None


def _pnm_size(header: bytes) -> tuple[int, int]:
    """The first two numbers after the magic; a ``#`` opens a comment up to the end of its line."""
    words: list[bytes] = []
    for line in header[2:].splitlines():
        words += line.split(b"#", 1)[0].split()
    return int(words[1]), int(words[0])


def to_square(image: NDArray[np.uint8], size: int, fit: Fit) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 to (size, size, 3): the centre cut out, distorted, or with black bars."""
    height, width = image.shape[:2]
    if height != width and fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    elif height != width and fit == "pad":
        side = max(height, width)
        square = np.zeros((side, side, 3), np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = image
        image = square
    return resize(np.ascontiguousarray(image), size)
