"""Malformed and giant images: refused in one line, the giant ones from their header in less than a millisecond.

Quick, ci and release counts: see scale.py.
"""

import random
import struct
import time
from collections import Counter

import cv2
import numpy as np
import pytest
from scale import scale, seed

from facetrain.data.images import decode, decode_upright
from facetrain.errors import InputError

KINDS = (".jpg", ".png", ".webp")


def picture(extension, side, rng):
    small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = cv2.resize(small, (side, side + 3), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.2:
        image = image[..., 0]
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if extension == ".jpg" and rng.random() < 0.3 else []
    return cv2.imencode(extension, image, options)[1].tobytes()


def malformed(data, rng):
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(mutant)) if rng.random() < 0.7 else rng.randrange(min(64, len(mutant)))
        action = rng.randrange(6)
        if action == 0:
            del mutant[max(2, at) :]
        elif action == 1:
            mutant[at] ^= 1 << rng.randrange(8)
        elif action == 2:
            mutant[at : at + 2] = rng.choice(
                (b"\xff\xff", b"\0\0", b"\xff\xc0", b"\xff\xc4", b"\xff\xdb", b"\xff\xd9", b"\x7f\xff")
            )
        elif action == 3:
            del mutant[at : at + rng.randint(1, 30)]
            mutant = mutant or bytearray(b"\xff")
        elif action == 4:
            mutant[at:at] = rng.randbytes(rng.randint(1, 30))
        else:
            other = rng.randrange(len(mutant))
            mutant[at : at + 16] = mutant[other : other + 16]
    return bytes(mutant)


def fuzz(count, generator, capfd):
    rng, shapes = random.Random(generator), np.random.default_rng(generator)
    seeds = {kind: [picture(kind, side, shapes) for side in (16, 40, 112) for _ in range(4)] for kind in KINDS}
    results: Counter[str] = Counter()
    worst = 0.0
    for number in range(count):
        kind = KINDS[number % 3]
        mutant = malformed(rng.choice(seeds[kind]), rng)
        for read in (decode, decode_upright):
            started = time.perf_counter()
            try:
                pixels = read(mutant)
            except InputError as error:
                results[f"{kind} refused"] += 1
                message = str(error)
                results["line breaks"] += "\n" in message or len(message) > 300
            else:
                results[f"{kind} read"] += 1
                results["no image"] += pixels.dtype != np.uint8 or pixels.shape[2:] != (3,)
            worst = max(worst, time.perf_counter() - started)
    printed = capfd.readouterr()
    print(dict(results), f"worst {worst * 1e3:.0f} ms")
    assert results["line breaks"] == results["no image"] == 0
    assert printed.err == ""
    assert all(results[f"{kind} refused"] > count / 6 for kind in KINDS)
    assert worst < 5


def test_malformed_images(capfd):
    fuzz(scale(quick=1000, ci=1000, release=1000), seed(), capfd)


@pytest.mark.faults
def test_many_malformed_images(capfd):
    fuzz(scale(quick=1000, ci=10_000, release=100_000), seed() + 1, capfd)


def giants(width, height):
    """A header of each kind that promises a picture of that size, with a few bytes behind it."""
    sof = struct.pack(">BBHBHHB", 0xFF, 0xC0, 17, 8, height & 0xFFFF, width & 0xFFFF, 3) + b"\1\x22\0\2\x11\1\3\x11\1"
    sos = b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0" + bytes(50)
    if max(width, height) < 65536:
        yield b"\xff\xd8" + sof + sos
    yield b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 2, 0, 0, 0) + bytes(100)
    if max(width, height) < 16384:
        yield (
            b"RIFF"
            + struct.pack("<I", 200)
            + b"WEBPVP8 "
            + struct.pack("<I", 190)
            + b"\0\0\0\x9d\x01\x2a"
            + struct.pack("<HH", width, height)
            + bytes(150)
        )
        bits = (height - 1) << 14 | (width - 1)
        yield (
            b"RIFF"
            + struct.pack("<I", 200)
            + b"WEBPVP8L"
            + struct.pack("<I", 190)
            + b"\x2f"
            + struct.pack("<I", bits)
            + bytes(150)
        )
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    yield b"RIFF" + struct.pack("<I", 200) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + bytes(150)
    yield (
        b"BM" + struct.pack("<IHHI", 200, 0, 0, 54) + struct.pack("<IiiHHI", 40, width, -height, 1, 24, 0) + bytes(150)
    )
    yield b"P6\n%d %d\n255\n" % (width, height) + bytes(100)


@pytest.mark.parametrize(("width", "height"), [(4097, 16), (16, 4097), (5001, 5000), (30000, 30000), (65500, 65500)])
def test_giants_are_refused_from_the_header_in_a_millisecond(width, height):
    """More than 4,096 a side, and so whatever has more than 16.8 Mpx, 25 included."""
    for data in giants(width, height):
        seconds = []
        for _ in range(20):
            started = time.process_time()
            with pytest.raises(InputError, match=f"the image is {width} x {height} pixels; at most 4096 a side"):
                decode(data)
            seconds.append(time.process_time() - started)
        assert min(seconds) < 1e-3, data[:4]


def test_photos_to_pack_have_larger_limits_of_their_own():
    for width, height in ((12001, 16), (12000, 8400), (30000, 30000)):
        for data in giants(width, height):
            with pytest.raises(
                InputError, match=f"the photo is {width} x {height} pixels; at most 12000 a side and 100"
            ):
                decode_upright(data)
