import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg

from facetrain.data.images import decode, decode_upright, encode_jpeg, image_size, resize
from facetrain.errors import InputError


def picture(height=40, width=56, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(extension, image):
    return cv2.imencode(extension, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.mark.parametrize("extension", [".png", ".ppm", ".bmp"])
def test_lossless_formats_come_back_as_rgb(extension):
    image = picture()
    assert image_size(encoded(extension, image)) == (40, 56)
    np.testing.assert_array_equal(decode(encoded(extension, image)), image)


def test_jpeg_is_rgb_and_close():
    image = picture()
    result = decode(memoryview(encode_jpeg(image, quality=98)))
    assert result.shape == (40, 56, 3)
    assert np.abs(result.astype(int) - image).mean() < 6
    swapped = np.abs(result.astype(int) - image[..., ::-1]).mean()
    assert swapped > 20


def test_gray_images_have_three_equal_channels():
    gray = picture()[..., 0]
    pgm = cv2.imencode(".pgm", gray)[1].tobytes()
    np.testing.assert_array_equal(decode(pgm), np.repeat(gray[..., None], 3, axis=2))
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(gray[..., None]), colorspace="GRAY", colorsubsampling="Gray")
    result = decode(jpeg)
    assert result.shape == (40, 56, 3)
    assert (result[..., 0] == result[..., 2]).all()


@pytest.mark.parametrize("options", [[], [cv2.IMWRITE_WEBP_QUALITY, 101]])
def test_webp_lossy_and_lossless(options):
    image = picture()
    webp = cv2.imencode(".webp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()
    assert image_size(webp) == (40, 56)
    assert np.abs(decode(webp).astype(int) - image).mean() < 8


def test_pgm_header_with_comments():
    pgm = b"P5\n# made by 3 4\n 3 # wide\n2\n255\n" + bytes(range(6))
    assert image_size(pgm) == (2, 3)
    np.testing.assert_array_equal(decode(pgm)[..., 0], np.arange(6).reshape(2, 3))


def test_decode_into_a_batch_row_equals_decode():
    image = encode_jpeg(picture(48, 48))
    batch = np.zeros((2, 48, 48, 3), np.uint8)
    assert decode(image, 48, out=batch[1]) is not None
    np.testing.assert_array_equal(batch[1], decode(image))
    assert not batch[0].any()
    small = np.zeros((24, 24, 3), np.uint8)
    decode(image, 24, out=small)
    np.testing.assert_array_equal(small, resize(decode(image), 24))
    np.testing.assert_array_equal(small, decode(image, 24))


def test_resize_by_area_averages_blocks():
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    means = image.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize(image, 4) - means).max() <= 0.51
    assert resize(image, 8) is image
    assert resize(image, 16).shape == (16, 16, 3)


def cut(data, keep):
    return data[: int(len(data) * keep)]


@pytest.mark.parametrize("extension", [".jpg", ".png", ".ppm", ".bmp", ".webp"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.97])
def test_cut_images_are_refused(extension, keep):
    with pytest.raises(InputError):
        decode(cut(encoded(extension, picture(100, 100)), keep))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello, I am no image", "not a readable JPEG"),
        (b"\xff\xd8\xff\xe0 no", "JPEG header is damaged"),
        (b"P5 no numbers here at all", "not a readable JPEG"),
    ],
)
def test_what_is_no_image_is_said(data, message):
    with pytest.raises(InputError, match=message) as caught:
        decode(data)
    assert "\n" not in str(caught.value)


def png_header(width, height):
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 2, 0, 0, 0) + bytes(100)


@pytest.mark.parametrize(("width", "height"), [(30000, 30000), (4097, 10), (10, 4097), (2**31 - 1, 1)])
def test_giant_images_are_refused_from_the_header(width, height):
    with pytest.raises(InputError, match=f"{width} x {height} pixels; at most 4096"):
        decode(png_header(width, height))


def test_giant_jpeg_is_refused_from_the_header():
    jpeg = bytearray(encode_jpeg(picture()))
    start = jpeg.index(b"\xff\xc0")  # frame header: height and width follow length and precision
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 30000, 30000)
    with pytest.raises(InputError, match="30000 x 30000"):
        decode(bytes(jpeg))


def test_photos_of_cameras_may_be_large():
    photo = encode_jpeg(np.full((3000, 4200, 3), 90, np.uint8))
    assert decode_upright(photo).shape == (3000, 4200, 3)
    with pytest.raises(InputError, match="4200 x 3000 pixels; at most 4096"):
        decode(photo)
    for width, height in ((12001, 10), (11000, 11000), (2**31 - 1, 1)):
        with pytest.raises(InputError, match=f"{width} x {height} pixels; at most 12000 a side and 100 Mpx"):
            decode_upright(png_header(width, height))


@pytest.mark.parametrize("read", [decode, decode_upright])
def test_damaged_png_is_refused_without_a_line_of_libpng(read, capfd):
    png = encoded(".png", picture(100, 100))
    np.testing.assert_array_equal(read(png + b"more"), picture(100, 100))
    for data in (png[: len(png) // 2], png[:-1], png[:-12], png[:40]):
        with pytest.raises(InputError, match=f"the PNG is cut short: {len(data)} bytes"):
            read(data)
    flipped = png[:500] + bytes([png[500] ^ 9]) + png[501:]
    with pytest.raises(InputError, match="the PNG is damaged: a wrong checksum at byte 33"):
        read(flipped)
    assert capfd.readouterr() == ("", "")


def tiff(orientation):
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def with_orientation(jpeg, orientation):
    app1 = b"Exif\0\0" + tiff(orientation)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(app1) + 2) + app1 + jpeg[2:]


def test_orientation_tag_counts_for_photos_only():
    jpeg = encode_jpeg(picture())
    stored = decode(jpeg)
    np.testing.assert_array_equal(decode(with_orientation(jpeg, 6)), stored)
    np.testing.assert_array_equal(decode_upright(jpeg), stored)
    turned = decode_upright(with_orientation(jpeg, 6))  # 6: the camera was held upright, turn clockwise
    assert turned.shape == (56, 40, 3)
    assert np.abs(turned.astype(int) - np.rot90(stored, -1)).max() <= 3


def png_with_orientation(png, orientation):
    chunk = b"eXIf" + tiff(orientation)
    return png[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def webp_with_orientation(webp, orientation):
    def size(pixels):
        return (pixels - 1).to_bytes(3, "little")

    exif = tiff(orientation)
    extended = b"VP8X" + struct.pack("<I", 10) + bytes([8, 0, 0, 0]) + size(56) + size(40)
    body = b"WEBP" + extended + webp[12:] + b"EXIF" + struct.pack("<I", len(exif)) + exif
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(("extension", "tag"), [(".png", png_with_orientation), (".webp", webp_with_orientation)])
def test_orientation_tag_of_other_formats(extension, tag):
    plain = encoded(extension, picture())
    stored = decode(plain)
    np.testing.assert_array_equal(decode(tag(plain, 6)), stored)
    np.testing.assert_array_equal(decode_upright(plain), stored)
    np.testing.assert_array_equal(decode_upright(tag(plain, 6)), np.rot90(stored, -1))
