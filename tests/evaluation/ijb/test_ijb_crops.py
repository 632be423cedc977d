"""Loose crops: what is decoded, and names that must not be followed."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest

from facetrain.data.images import decode, encode_jpeg
from facetrain.errors import InputError
from facetrain.evaluation.ijb.align import POINTS, SIZE, similarity, warp
from facetrain.evaluation.ijb.crops import LooseCrops, check_crops


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    crops = tmp_path / "loose_crop"
    (crops / "more").mkdir(parents=True)
    for name in ("1.jpg", "2.jpg", "more/3.jpg"):
        (crops / name).write_bytes(encode_jpeg(rng.integers(0, 255, (150, 140, 3), np.uint8)))
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    return crops


def test_a_crop_is_cut_by_its_landmarks(folder):
    landmarks = np.stack([POINTS, POINTS * 1.2 + 3])
    crops = LooseCrops(folder, ["1.jpg", "more/3.jpg"], landmarks)
    assert len(crops) == 2
    for size in (SIZE, 40):
        out, expected = np.empty((2, size, size, 3), np.uint8)
        crops.decode(1, out)
        warp(decode((folder / "more/3.jpg").read_bytes()), similarity(landmarks)[1], expected)
        np.testing.assert_array_equal(out, expected)
    upright = np.empty((SIZE, SIZE, 3), np.uint8)
    crops.decode(0, upright)
    np.testing.assert_array_equal(upright, decode((folder / "1.jpg").read_bytes())[:SIZE, :SIZE])


def test_content_tells_other_landmarks_apart(folder):
    one, other = (LooseCrops(folder, ["1.jpg"], (POINTS + shift)[None].astype(np.float32)) for shift in (0, 0.01))
    assert one.content(0) != other.content(0)
    assert one.content(0) == LooseCrops(folder, ["1.jpg"], POINTS[None].astype(np.float32)).content(0)


def png_of_size(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the image is empty: 0 bytes"),
        (b"\xff\xd8 cut", "JPEG"),
        (b"hello", "not a readable JPEG"),
        (png_of_size(30_000, 30_000), "the image is 30000 x 30000 pixels; at most 4096"),
    ],
)
def test_damaged_images_say_where_they_lie(folder, data, reason):
    (folder / "2.jpg").write_bytes(data)
    crops = LooseCrops(folder, ["1.jpg", "2.jpg"], np.stack([POINTS, POINTS]))
    with pytest.raises(InputError, match=rf"loose_crop/2\.jpg: .*{reason}"):
        crops.decode(1, np.empty((SIZE, SIZE, 3), np.uint8))


def test_a_file_that_has_gone(folder):
    crops = LooseCrops(folder, ["9.jpg"], POINTS[None])
    with pytest.raises(InputError, match=r"loose_crop/9\.jpg cannot be read: No such file"):
        crops.decode(0, np.empty((SIZE, SIZE, 3), np.uint8))


def test_good_names_pass(folder):
    check_crops(folder, ["1.jpg", "2.jpg", "more/3.jpg"], folder / "list.txt")
    (folder / "inside.jpg").symlink_to(folder / "more" / "3.jpg")
    (folder / "again").symlink_to(folder / "more")
    check_crops(folder, ["inside.jpg", "again/3.jpg"], folder / "list.txt")
    os.symlink(folder, folder.parent / "linked")  # the folder itself may lie elsewhere
    check_crops(folder.parent / "linked", ["1.jpg", "more/3.jpg"], folder / "list.txt")


@pytest.mark.parametrize(
    "name",
    ["../secret.jpg", "more/../../secret.jpg", "/etc/passwd", "a\0.jpg", "..", ".", "more/", "more//3.jpg", "./1.jpg"],
)
def test_names_that_climb_are_refused(folder, name):
    with pytest.raises(InputError, match=r"list\.txt:2: .* is no file name inside loose_crop/") as error:
        check_crops(folder, ["1.jpg", name], folder / "list.txt", missing_allowed=True)
    assert "\0" not in str(error.value)


def test_links_that_lead_out_are_refused(folder):
    (folder / "out.jpg").symlink_to(folder.parent / "secret.jpg")
    (folder / "up").symlink_to(folder.parent)
    for name in ("out.jpg", "up/secret.jpg"):
        with pytest.raises(
            InputError, match=r"list\.txt:2: .*(out\.jpg|up/secret\.jpg) is a link that leads out of .*loose_crop"
        ):
            check_crops(folder, ["1.jpg", name], folder / "list.txt", missing_allowed=True)


def test_missing_images_are_counted(folder):
    names = ["1.jpg", "8.jpg", "gone/9.jpg"]
    with pytest.raises(
        InputError, match=r"loose_crop lacks 2 of the 3 images that l\.txt names, the first 8\.jpg \(line 2"
    ):
        check_crops(folder, names, folder / "l.txt")
    check_crops(folder, names, folder / "l.txt", missing_allowed=True)
    with pytest.raises(InputError, match="lacks 2 of the 2 images"):
        check_crops(folder, names[1:], folder / "l.txt", missing_allowed=True)
    with pytest.raises(
        InputError, match=r"nowhere is not a folder; expected the images that l\.txt names, such as 1\.jpg"
    ):
        check_crops(folder.parent / "nowhere", names, folder / "l.txt")
