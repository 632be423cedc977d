"""Records: round trips, the layouts of insightface and im2rec, the writer."""

import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_helpers import interrupt, lay_out, raw, read_all, small, write, write_labels

from facetrain.data import record_index, record_writer
from facetrain.data.record_format import MAGIC, MAGIC_BYTES, frame, image_payload
from facetrain.data.record_writer import RecordWriter
from facetrain.data.recordio import RecordFile, scan
from facetrain.errors import InputError

QUICK = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Pieces that put the magic at aligned and unaligned places, beside itself and at both ends.
PIECES = st.sampled_from([MAGIC_BYTES, MAGIC_BYTES[:2], MAGIC_BYTES[2:], b"", b"x", b"abc", b"\xff\xd8\xff\xe0" * 5])
ENCODED = st.lists(PIECES, max_size=8).map(b"".join)
MORE = st.lists(st.floats(width=32, allow_nan=False), max_size=3)


@pytest.fixture
def rec(tmp_path):
    return tmp_path / "set" / "train.rec"


@QUICK
@given(st.lists(st.lists(ENCODED, min_size=1, max_size=4), min_size=1, max_size=4))
def test_what_was_written_is_read(classes):
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder, "a", "train.rec"), classes)
        file = RecordFile(path)
        assert read_all(file) == [encoded for images in classes for encoded in images]
        assert file.labels.tolist() == [label for label, images in enumerate(classes) for _ in images]
        assert file.num_classes == len(classes)
        other = lay_out(Path(folder, "b", "train.rec"), [[(encoded, ()) for encoded in images] for images in classes])
        for name in ("train.rec", "train.idx", "property"):
            assert path.with_name(name).read_bytes() == other.with_name(name).read_bytes()


@QUICK
@given(st.lists(st.lists(st.tuples(ENCODED, MORE), min_size=1, max_size=4), min_size=1, max_size=4), st.booleans())
def test_what_other_tools_wrote_is_read(classes, identities):
    if not identities:
        classes[0].insert(0, (b"not empty", []))  # an empty image with a vector label would be insightface's header
    with tempfile.TemporaryDirectory() as folder:
        path = lay_out(Path(folder, "train.rec"), classes, identities)
        file = RecordFile(path)
        assert read_all(file) == [encoded for images in classes for encoded, _ in images]
        assert file.labels.tolist() == [label for label, images in enumerate(classes) for _ in images]
        assert file.labels.dtype == np.int64
        assert file.num_classes == len(classes)
        assert [file.record_number(i) for i in range(len(file))] == list(range(identities, len(file) + identities))
        assert [record.problem for record in scan(path)] == [None] * (len(file) + identities * (1 + len(classes)))


@QUICK
@given(ENCODED)
def test_parts_are_cut_where_dmlc_cuts_them(payload):
    """The definition: a part ends at each magic at a multiple of 4, and no part holds one there."""
    record, at, parts = frame(payload), 0, []
    while at < len(record):
        magic, word = struct.unpack_from("<II", record, at)
        length = word & (1 << 29) - 1
        parts.append((word >> 29, record[at + 8 : at + 8 + length]))
        assert magic == MAGIC
        assert len(parts) == 1 or parts[-2][0] in (1, 2)
        at += 8 + (length + 3) // 4 * 4
    flags = [flag for flag, _ in parts]
    assert flags == [0] if len(parts) == 1 else flags == [1] + [2] * (len(parts) - 2) + [3]
    assert MAGIC_BYTES.join(part for _, part in parts) == payload
    assert all(part[i : i + 4] != MAGIC_BYTES for _, part in parts for i in range(0, len(part), 4))


def test_layout_is_insightfaces(rec):
    write(rec, [[b"first", MAGIC_BYTES * 2 + b"tail"], [b""], [b"last one"]])
    assert rec.with_name("property").read_text() == "3,112,112\n"
    data = rec.read_bytes()
    lines = [tuple(map(int, line.split("\t"))) for line in rec.with_suffix(".idx").read_text().splitlines()]
    assert [number for number, _ in lines] == list(range(8))

    def header(number):
        return struct.unpack_from("<IfQQ", data, lines[number][1] + 8)

    def pair(number):
        return struct.unpack_from("<2f", data, lines[number][1] + 32)

    assert header(0)[0] == 2
    assert pair(0) == (5, 8)
    assert [pair(number) for number in (5, 6, 7)] == [(1, 3), (3, 4), (4, 5)]
    assert header(4) == (0, 2.0, 4, 0)
    assert header(3) == (0, 1.0, 3, 0)
    assert not [name for name in os.listdir(rec.parent) if name.startswith(".")]


def test_images_are_read_only(rec):
    file = RecordFile(small(rec))
    assert isinstance(file.encoded(0), memoryview)
    assert file.encoded(0).readonly
    assert file.where(0) == f"train.rec record 1 at byte {file.byte_offset(0)}"
    assert rec.read_bytes()[file.byte_offset(3) :][:4] == MAGIC_BYTES
    with pytest.raises(IndexError):
        file.encoded(-1)


def test_im2rec_files_have_no_header(rec):
    """Numbers in any order, vector labels from record 0 on, no ``property``."""
    labels, numbers = [2, 0, 1], [7, 0, 3]
    raw(rec, [image_payload([label, 9.0], n, b"jpeg%d" % n) for label, n in zip(labels, numbers, strict=True)], numbers)
    file = RecordFile(rec)
    assert file.labels.tolist() == labels
    assert read_all(file) == [b"jpeg7", b"jpeg0", b"jpeg3"]
    assert [file.record_number(i) for i in range(3)] == numbers
    assert file.num_classes == 3


def test_header_with_unsorted_index(rec):
    small(rec)
    before = read_all(RecordFile(rec))
    lines = rec.with_suffix(".idx").read_text().splitlines(keepends=True)
    rec.with_suffix(".idx").write_text("".join(reversed(lines)).replace("\n", "\r\n"))
    assert read_all(RecordFile(rec)) == before


def test_header_beyond_float32(rec, monkeypatch):
    """Glint360K has 17,091,657 images: float32 rounds record 0, so the first record without an image decides."""
    write(rec, [[b"a"] * 3, [b"b"] * 4])
    data = bytearray(rec.read_bytes())
    monkeypatch.setattr(record_index, "EXACT", 6)
    for first in (7, 8, 9):
        struct.pack_into("<2f", data, 32, first, 12)
        rec.write_bytes(data)
        file = RecordFile(rec)
        assert (len(file), file.num_classes) == (7, 2)


def test_class_count_sources(rec):
    raw(rec, [image_payload(float(label), n, b"x") for n, label in enumerate([0, 4, 1])])
    assert RecordFile(rec).num_classes == 5
    rec.with_name("property").write_text("9,112,112")
    assert RecordFile(rec).num_classes == 9
    rec.with_name("property").write_text("4,112,112")
    with pytest.raises(
        InputError, match=r"record 1 at byte 36: label 4; expected a class 0\.\.3, as property counts 4"
    ):
        RecordFile(rec)
    for text in ("", "9", "9,112", "x,112,112", "9,112,112,3", "0,112,112", "-1,2,3", "²,1,1"):
        rec.with_name("property").write_text(text)
        with pytest.raises(InputError, match="property"):
            RecordFile(rec)
    small(rec)
    rec.with_name("property").write_text("4,112,112")
    with pytest.raises(InputError, match=r"counts 4 classes but record 0 of train\.rec 3"):
        RecordFile(rec)


def test_interrupted_writer_leaves_nothing(rec):
    with pytest.raises(KeyboardInterrupt):
        interrupt(rec)
    assert not rec.parent.exists()  # nor the folder that it made
    write(rec, [[b"old"]])
    before = rec.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        interrupt(rec, overwrite=True)
    assert rec.read_bytes() == before
    assert len(list(rec.parent.iterdir())) == 3


def test_what_a_killed_writer_left_is_taken_over(rec):
    rec.parent.mkdir()
    for name in (".train.rec.part", ".train.idx.part", ".property.part"):
        (rec.parent / name).write_bytes(b"half " * 1000)
    write(rec, [[b"a", b"b"], [b"c"]])
    assert sorted(path.name for path in rec.parent.iterdir()) == ["property", "train.idx", "train.rec"]
    assert len(RecordFile(rec)) == 3
    assert not [record for record in scan(rec) if record.problem]


def test_one_writer_at_a_time(rec):
    with RecordWriter(rec) as writer:
        writer.write(0, b"x")
        with pytest.raises(InputError, match=r"train\.rec is being written by another process"):
            RecordWriter(rec)
    assert read_all(RecordFile(rec)) == [b"x"]
    write(rec, [[b"a", b"b"], [b"c"]], overwrite=True)
    assert len(RecordFile(rec)) == 3


def test_writer_refuses(rec, tmp_path):
    with pytest.raises(InputError, match="would hold no image"):
        write_labels(rec, [])
    expected = {(1,): "so 0 was", (-1,): "so 0 was", (0, 2): "0 or 1 was", (0, 1, 0): "1 or 2 was"}
    for labels, message in expected.items():
        with pytest.raises(InputError, match=message):
            write_labels(rec, labels)
    assert not rec.parent.exists()
    small(rec)
    with pytest.raises(InputError, match="is there already"):
        RecordWriter(rec)
    with pytest.raises(InputError, match=r"must end in \.rec"):
        RecordWriter(tmp_path / "train")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        RecordWriter(tmp_path / "file" / "train.rec")


def fill_disk(path):
    with RecordWriter(path) as writer:
        writer._rec.close()
        writer._rec = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
        writer.write(0, b"x")


def test_full_disk(rec):
    with pytest.raises(InputError, match="cannot be written: No space left"):
        fill_disk(rec)
    assert not rec.parent.exists()


@pytest.mark.parametrize(("room", "labels"), [(6, [0, 0, 1]), (5, [0, 0, 0])])
def test_writer_stops_where_float32_does(rec, monkeypatch, room, labels):
    """Record 0, the images and a record an identity fit; one image more does not."""
    monkeypatch.setattr(record_writer, "EXACT", room)
    with pytest.raises(InputError, match=rf"would hold more than {room} records, .*: leave out people or photos"):
        write_labels(rec, [*labels, labels[-1]])
    write_labels(rec, labels)
    assert len(rec.with_suffix(".idx").read_text().splitlines()) == room
    assert RecordFile(rec).labels.tolist() == labels


def test_im2rec_classes_in_any_order(rec):
    raw(rec, [image_payload(float(label), n, b"%d" % label) for n, label in enumerate([3, 0, 3, 1])])
    file = RecordFile(rec)
    assert file.labels.tolist() == [3, 0, 3, 1]
    assert [file.record_number(i) for i in range(4)] == [0, 1, 2, 3]
    assert file.num_classes == 4


def test_property_of_oblong_images(rec):
    with RecordWriter(rec, (96, 112)) as writer:
        assert [writer.write(label, b"x") for label in (0, 0, 1)] == [1, 2, 3]
    assert rec.with_name("property").read_text() == "2,96,112\n"
