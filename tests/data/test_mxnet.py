"""mxnet, the reference, reads our records and we read mxnet's (`make test-mxnet` builds its environment)."""

import pickle
import struct
import sys

import numpy as np
import pytest
import simplejpeg
from record_helpers import lay_out, write

from facetrain.data.foreign_readers import MxnetImages, import_mxnet
from facetrain.data.record_format import MAGIC_BYTES, frame, image_payload
from facetrain.data.record_writer import RecordWriter
from facetrain.data.recordio import RecordFile, scan
from facetrain.errors import InputError

needs_mxnet = pytest.mark.mxnet
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # mxnet's own, dozens of them
# Encoded "images" whose parts end at the start, in the middle, at the end, beside each other, and not at all.
AWKWARD = [
    MAGIC_BYTES,
    MAGIC_BYTES * 3,
    b"abcd" + MAGIC_BYTES + b"tail",
    b"abc" + MAGIC_BYTES + b"unaligned",
    b"abcdefgh" + MAGIC_BYTES + MAGIC_BYTES[:3],
    MAGIC_BYTES[:2] + MAGIC_BYTES + MAGIC_BYTES[2:] + b"x",
    b"",
    b"plain",
]


@pytest.fixture
def rec(tmp_path):
    return tmp_path / "train.rec"


@pytest.fixture
def recordio():
    return import_mxnet().recordio


def indexed(recordio, path, mode):
    return recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), mode)


def payloads():
    """``AWKWARD`` and random mixtures of the magic's bytes."""
    rng = np.random.default_rng(0)
    pieces = [MAGIC_BYTES, MAGIC_BYTES[:1], MAGIC_BYTES[1:], b"\0\0", b"four"]
    return AWKWARD + [b"".join(pieces[i] for i in rng.integers(0, 5, 12)) for _ in range(200)]


@pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="this NumPy suits mxnet")
def test_without_mxnet_the_message_says_what_to_do(rec):
    before = set(sys.modules)
    with pytest.raises(InputError, match=r"run 'pip install mxnet==1\.9\.1 \"numpy>=1\.26,<2\"', or set data\.reader"):
        MxnetImages(rec)
    assert "mxnet" not in set(sys.modules) - before


@needs_mxnet
@pytest.mark.parametrize("more", [(), (0.5, -3.0)])
def test_mxnet_reads_ours(rec, recordio, more):
    encoded = payloads()
    people = [encoded[start : start + 4] for start in range(0, len(encoded), 4)]
    if more:  # our writer has no use for vector labels
        lay_out(rec, [[(image, more) for image in images] for images in people])
    else:
        write(rec, people)
    reader = indexed(recordio, rec, "r")
    classes = -(-len(encoded) // 4)
    header, empty = recordio.unpack(reader.read_idx(0))
    assert header.flag == 2
    assert header.label.tolist() == [len(encoded) + 1, len(encoded) + 1 + classes]
    assert empty == b""
    for i, image in enumerate(encoded):
        header, read = recordio.unpack(reader.read_idx(i + 1))
        assert (read, header.id, header.id2) == (image, i + 1, 0)
        assert np.ravel(header.label).tolist() == [i // 4, *more]
    ranges = [
        recordio.unpack(reader.read_idx(int(n)))[0].label.tolist() for n in range(len(encoded) + 1, len(reader.keys))
    ]
    assert ranges == [[start, min(start + 4, len(encoded) + 1)] for start in range(1, len(encoded) + 1, 4)]


@needs_mxnet
def test_ours_and_mxnets_are_the_same_bytes(rec, tmp_path, recordio):
    """insightface's layout, written once by each."""
    encoded = payloads()
    with RecordWriter(rec) as writer:
        for image in encoded:
            writer.write(0, image)
    theirs = tmp_path / "theirs.rec"
    writer = indexed(recordio, theirs, "w")
    count = len(encoded)
    writer.write_idx(0, recordio.pack(recordio.IRHeader(0, np.array([count + 1, count + 2], np.float32), 0, 0), b""))
    for i, image in enumerate(encoded):
        writer.write_idx(i + 1, recordio.pack(recordio.IRHeader(0, 0.0, i + 1, 0), image))
    end = np.array([1, count + 1], np.float32)
    writer.write_idx(count + 1, recordio.pack(recordio.IRHeader(0, end, count + 1, 0), b""))
    writer.close()
    assert theirs.read_bytes() == rec.read_bytes()
    assert theirs.with_suffix(".idx").read_bytes() == rec.with_suffix(".idx").read_bytes()


@needs_mxnet
@pytest.mark.parametrize("vector", [False, True])
def test_we_read_mxnets(rec, recordio, vector):
    """As im2rec writes: no header, record numbers in any order."""
    encoded = [b"x", *payloads()]
    numbers = np.random.default_rng(1).permutation(len(encoded)).tolist()
    writer = indexed(recordio, rec, "w")
    for i, (number, image) in enumerate(zip(numbers, encoded, strict=True)):
        label = np.array([i % 7, 0.25], np.float32) if vector else float(i % 7)
        # An empty image with a vector label in record 0 would be insightface's header.
        writer.write_idx(number, recordio.pack(recordio.IRHeader(0, label, number, 0), image or b"-"))
    writer.close()
    file = RecordFile(rec)
    assert [bytes(file.encoded(i)) for i in range(len(file))] == [image or b"-" for image in encoded]
    assert file.labels.tolist() == [i % 7 for i in range(len(encoded))]
    assert [file.record_number(i) for i in range(len(file))] == numbers
    assert all(record.problem is None for record in scan(rec))


@needs_mxnet
def test_magic_in_the_header_too(rec, recordio):
    """A record number that is the magic cuts the image header in two."""
    magic = struct.unpack("<I", MAGIC_BYTES)[0]
    writer = indexed(recordio, rec, "w")
    writer.write_idx(3, recordio.pack(recordio.IRHeader(0, 1.0, magic, magic), b"body"))
    writer.close()
    assert rec.read_bytes() == frame(struct.pack("<IfQQ", 0, 1.0, magic, magic) + b"body")
    assert RecordFile(rec).labels.tolist() == [1]
    assert bytes(RecordFile(rec).encoded(0)) == b"body"


@needs_mxnet
def test_mxnet_as_the_reader(rec):
    """Same images, labels and pixels through mxnet; mxnet decodes with OpenCV, which rounds as libjpeg-turbo does."""
    import cv2

    rng = np.random.default_rng(2)
    images = [cv2.resize(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8), (40, 32)) for _ in range(6)]
    encoded = [simplejpeg.encode_jpeg(np.ascontiguousarray(image), 95) for image in images]
    lay_out(rec, [[(encoded[i], ()), (encoded[i + 1], (1.0,))] for i in (0, 2, 4)])
    reader = MxnetImages(rec)
    for opened in (reader, pickle.loads(pickle.dumps(reader))):
        assert len(opened) == 6
        assert opened.num_classes == 3
        assert opened.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert opened.where(5) == RecordFile(rec).where(5)
        for i in (5, 0, 3):
            assert bytes(opened.encoded(i)) == encoded[i]
            decoded = opened.decode_image(i)
            assert decoded.dtype == np.uint8
            assert np.abs(decoded.astype(int) - simplejpeg.decode_jpeg(encoded[i])).max() <= 1


@needs_mxnet
def test_image_that_mxnet_cannot_decode_is_named(rec):
    with RecordWriter(rec) as writer:
        writer.write(0, simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
        writer.write(0, b"no image")
        writer.write(0, b"")
    reader = MxnetImages(rec)
    assert reader.decode_image(0).shape == (16, 16, 3)
    for i in (1, 2):
        with pytest.raises(InputError, match=rf"train\.rec record {i + 1} at byte \d+: mxnet cannot decode it"):
            reader.decode_image(i)


@needs_mxnet
def test_damaged_record_under_mxnet_is_named(rec):
    lay_out(rec, [[(b"image", ())]] * 3, identities=False)
    reader = MxnetImages(rec)
    data = bytearray(rec.read_bytes())
    data[reader._records.byte_offset(1)] ^= 1
    rec.write_bytes(data)
    with pytest.raises(InputError, match="record 1 at byte"):
        reader.encoded(1)


@needs_mxnet
def test_payload_of_mxnet_pack_is_ours(recordio):
    for label in (3.0, [3.0, 0.5]):
        ours = image_payload(label, 17, b"jpeg")
        header = recordio.IRHeader(0, np.array(label, np.float32) if isinstance(label, list) else label, 17, 0)
        assert recordio.pack(header, b"jpeg") == ours
