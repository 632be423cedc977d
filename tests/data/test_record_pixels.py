"""The short way from a record to pixels is the long way, to the last pixel and word."""

import cv2
import numpy as np
import pytest
from record_helpers import write

from facetrain.data.images import decode, encode_jpeg
from facetrain.data.recordio import RecordFile
from facetrain.errors import InputError


def picture(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


GOOD = {
    "its size": encode_jpeg(picture(112, 112)),
    "smaller": encode_jpeg(picture(100, 100)),
    "as many pixels, another shape": encode_jpeg(picture(56, 224)),
    "larger": encode_jpeg(picture(300, 112)),
    "PNG": cv2.imencode(".png", picture(112, 112))[1].tobytes(),
    "grey JPEG": cv2.imencode(".jpg", picture(112, 112)[..., 0])[1].tobytes(),
    "one pixel": encode_jpeg(picture(1, 1)),
}
BAD = {
    "empty": b"",
    "no image": b"no image at all",
    "cut": encode_jpeg(picture(112, 112))[:-500],
    "cut header": encode_jpeg(picture(112, 112))[:100],
    "huge": encode_jpeg(picture(112, 112)).replace(b"\x00\x70\x00\x70", b"\xff\xff\xff\xff", 1),
}


@pytest.mark.parametrize("kind", GOOD)
def test_same_pixels(tmp_path, kind):
    records = RecordFile(write(tmp_path / "train.rec", [[GOOD[kind]]]))
    out = np.full((112, 112, 3), 99, np.uint8)
    records.decode(0, out)
    np.testing.assert_array_equal(out, decode(GOOD[kind], 112))


@pytest.mark.parametrize("kind", BAD)
def test_same_words(tmp_path, kind):
    records = RecordFile(write(tmp_path / "train.rec", [[BAD[kind]]]))
    with pytest.raises(InputError) as long_way:
        decode(BAD[kind], 112)
    with pytest.raises(InputError) as short_way:
        records.decode(0, np.empty((112, 112, 3), np.uint8))
    assert str(short_way.value) == f"{records.where(0)}: {long_way.value}"
